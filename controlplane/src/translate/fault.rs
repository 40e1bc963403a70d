//! Faults of routes: a filter in every outbound listener of those who execute them, which does nothing but what a
//! route says.

use millrace_xds::proto::envoy::extensions::filters::common::fault::v3 as common;
use millrace_xds::proto::envoy::extensions::filters::http::fault::v3 as proto;
use millrace_xds::proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use millrace_xds::proto::envoy::r#type::v3 as kinds;
use millrace_xds::proto::{Any, pack};

use super::ProxyView;
use super::wrap::duration;
use crate::model::node::Feature;
use crate::model::route::{AbortStatus, Fault};

const NAME: &str = "envoy.filters.http.fault";

/// The filters before the router on the way out.
pub(super) fn filters(view: &ProxyView) -> Vec<hcm::HttpFilter> {
    // A listener whose filters changed would be drained, so the filter is there before there is a fault.
    let filter = || hcm::HttpFilter {
        name: NAME.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(
            &proto::HttpFault::default(),
        ))),
        ..Default::default()
    };
    let executes = view.executes(Feature::Faults);
    executes.then(filter).into_iter().collect()
}

/// What a route tells the filter, under the filter's name.
pub(super) fn of_route(view: &ProxyView, fault: Option<&Fault>) -> Option<(String, Any)> {
    let fault = fault.filter(|_| view.executes(Feature::Faults))?;
    let filter = proto::HttpFault {
        delay: fault.delay.map(|(time, share)| common::FaultDelay {
            percentage: of_a_million(share),
            fault_delay_secifier: duration(time)
                .map(common::fault_delay::FaultDelaySecifier::FixedDelay),
        }),
        abort: fault.abort.map(|(status, share)| proto::FaultAbort {
            percentage: of_a_million(share),
            error_type: Some(match status {
                AbortStatus::Http(status) => {
                    proto::fault_abort::ErrorType::HttpStatus(u32::from(status))
                }
                AbortStatus::Grpc(status) => proto::fault_abort::ErrorType::GrpcStatus(status),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    Some((NAME.to_owned(), pack(&filter)))
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "proto's message fields are options"
)]
fn of_a_million(share: u32) -> Option<kinds::FractionalPercent> {
    Some(kinds::FractionalPercent {
        numerator: share,
        denominator: kinds::fractional_percent::DenominatorType::Million.into(),
    })
}
