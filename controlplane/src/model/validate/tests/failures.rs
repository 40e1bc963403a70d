//! Faults, hashes and outlier detection: what is wrong, and who executes the rest.

use super::{assert_refused, findings};

#[test]
fn who_executes_a_hash_depends_on_what_is_hashed() {
    let told = |hash: &str| {
        let spec =
            format!("  host: a\n  trafficPolicy:\n    loadBalancer: {{consistentHash: {hash}}}\n");
        findings("DestinationRule", &spec).remove(0)
    };
    for (hash, wanted) in [
        (
            "{httpHeaderName: x, maglev: {tableSize: 101}}",
            "gRPC's own clients use a ring instead",
        ),
        ("{useSourceIp: true}", "keep each channel at one endpoint"),
        ("{httpCookie: {name: x, ttl: 0s}}", "take endpoints in turn"),
        ("{httpQueryParameterName: x}", "take endpoints in turn"),
    ] {
        let told = told(hash);
        assert!(told.contains(wanted), "{hash}: {told}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_field() {
    for (kind, spec, wanted) in [
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {abort: {percentage: {value: 1}}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault.abort",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {abort: {grpcStatus: GONE, percentage: {value: 1}}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault.abort.grpcStatus",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {abort: {httpStatus: 99, percentage: {value: 1}}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault.abort.httpStatus",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {delay: {fixedDelay: 0s, percent: 1}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault.delay.fixedDelay",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, route: [{destination: {host: a}}]}]\n",
            "spec.http[0].fault.delay.percentage.value",
        ),
        (
            "VirtualService",
            "  hosts: [a]\n  http: [{fault: {abort: {httpStatus: 500, percentage: {value: 1}}}, directResponse: {status: 200}}]\n",
            "spec.http[0].fault",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {consistentHash: {}}}\n",
            "spec.trafficPolicy.loadBalancer.consistentHash",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}\n",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 8388609}}}\n",
            "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}\n",
            "spec.trafficPolicy.loadBalancer",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {outlierDetection: {interval: 0s}}\n",
            "spec.trafficPolicy.outlierDetection.interval",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}\n",
            "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
        ),
        (
            "DestinationRule",
            "  host: a\n  trafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 3}}\n",
            "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures",
        ),
    ] {
        assert_refused(kind, spec, wanted);
    }
}
