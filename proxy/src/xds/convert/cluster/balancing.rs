//! Load-balancing policies, in both ways a cluster can state them.

use millrace_xds::proto::envoy::config::cluster::v3 as pb;
use millrace_xds::proto::envoy::extensions::load_balancing_policies::{
    least_request::v3::LeastRequest, wrr_locality::v3::WrrLocality,
};
use millrace_xds::proto::unpack;
use pb::LoadBalancingPolicy;
use pb::cluster::{LbConfig, LbPolicy as PbLb};

use crate::resource::{ClusterKind, LbPolicy};
use crate::xds::convert::value::{enumeration, type_name, u32_or};
use crate::xds::convert::{Cx, Invalid};

const PACKAGE: &str = "envoy.extensions.load_balancing_policies.";
/// Envoy's default of `choice_count`.
const CHOICES: u32 = 2;
/// Envoy's default of `healthy_panic_threshold`, in percent.
const PANIC_THRESHOLD: u8 = 50;
/// `WrrLocality` names a policy in turn; deeper nesting than this is no configuration.
const MAX_DEPTH: usize = 4;

/// The cluster's policy; `load_balancing_policy` wins over `lb_policy`, as in Envoy.
pub(super) fn policy(
    cx: &mut Cx,
    m: &pb::Cluster,
    kind: &ClusterKind,
) -> Result<LbPolicy, Invalid> {
    let policy = if let Some(policies) = &m.load_balancing_policy {
        cx.at("load_balancing_policy", |cx| extension(cx, policies, 0))?
    } else {
        builtin(cx, m)?
    };
    let own = matches!(kind, ClusterKind::OriginalDst);
    match (policy == LbPolicy::ClusterProvided, own) {
        (true, true) | (false, false) => Ok(policy),
        (true, false) => Err(cx.bad(
            "lb_policy",
            "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST only",
        )),
        (false, true) => Err(cx.bad(
            "lb_policy",
            "a cluster of type ORIGINAL_DST needs CLUSTER_PROVIDED",
        )),
    }
}

fn builtin(cx: &mut Cx, m: &pb::Cluster) -> Result<LbPolicy, Invalid> {
    Ok(match enumeration(cx, "lb_policy", m.lb_policy)? {
        PbLb::RoundRobin => LbPolicy::RoundRobin,
        PbLb::Random => LbPolicy::Random,
        PbLb::ClusterProvided => LbPolicy::ClusterProvided,
        PbLb::LeastRequest => {
            let count = match &m.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count.as_ref(),
                _ => None,
            };
            LbPolicy::LeastRequest {
                choices: choices(cx, "least_request_lb_config.choice_count", count)?,
            }
        }
        PbLb::RingHash | PbLb::Maglev => {
            cx.note("lb_policy", "endpoints are chosen in turn, without hashing");
            LbPolicy::RoundRobin
        }
        PbLb::LoadBalancingPolicyConfig => {
            return Err(cx.bad("load_balancing_policy", "lb_policy refers to it"));
        }
    })
}

/// The first policy of the list that is known, as in Envoy.
fn extension(cx: &mut Cx, m: &LoadBalancingPolicy, depth: usize) -> Result<LbPolicy, Invalid> {
    let mut chosen = None;
    cx.each("policies", &m.policies, |cx, policy| {
        if chosen.is_some() {
            return Ok(());
        }
        let config = policy.typed_extension_config.as_ref();
        let Some(any) = config.and_then(|c| c.typed_config.as_ref()) else {
            return Err(cx.bad("typed_extension_config", "is required"));
        };
        let kind = type_name(any);
        chosen = match kind.strip_prefix(PACKAGE) {
            Some("round_robin.v3.RoundRobin") => Some(LbPolicy::RoundRobin),
            Some("random.v3.Random") => Some(LbPolicy::Random),
            Some("cluster_provided.v3.ClusterProvided") => Some(LbPolicy::ClusterProvided),
            Some("least_request.v3.LeastRequest") => {
                let m: LeastRequest = cx.unpacked(unpack(any))?;
                let choices = choices(cx, "choice_count", m.choice_count.as_ref())?;
                Some(LbPolicy::LeastRequest { choices })
            }
            Some("wrr_locality.v3.WrrLocality") if depth < MAX_DEPTH => {
                let m: WrrLocality = cx.unpacked(unpack(any))?;
                match &m.endpoint_picking_policy {
                    Some(inner) => Some(extension(cx, inner, depth + 1)?),
                    None => return Err(cx.bad("endpoint_picking_policy", "is required")),
                }
            }
            _ => {
                cx.key(kind, |cx| {
                    cx.note("", "the next policy of the list is taken");
                });
                None
            }
        };
        Ok(())
    })?;
    chosen.ok_or_else(|| cx.bad("policies", "none of them is supported"))
}

fn choices(
    cx: &mut Cx,
    field: &str,
    value: Option<&millrace_xds::proto::google::protobuf::UInt32Value>,
) -> Result<u32, Invalid> {
    let choices = u32_or(value, CHOICES);
    if choices < 2 {
        return Err(cx.bad(field, "must be at least 2"));
    }
    Ok(choices)
}

/// `common_lb_config.healthy_panic_threshold`, rounded down to whole percents.
pub(super) fn panic_threshold(cx: &mut Cx, m: &pb::Cluster) -> Result<u8, Invalid> {
    let config = m.common_lb_config.as_ref();
    let Some(threshold) = config.and_then(|c| c.healthy_panic_threshold.as_ref()) else {
        return Ok(PANIC_THRESHOLD);
    };
    if !(0.0..=100.0).contains(&threshold.value) {
        return Err(cx.bad(
            "common_lb_config.healthy_panic_threshold",
            "must be between 0 and 100",
        ));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be between 0 and 100"
    )]
    Ok(threshold.value as u8)
}
