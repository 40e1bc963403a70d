//! CSDS beside ADS: what every connected client was sent and how far it is, for tools that speak
//! `envoy.service.status.v3` (`grpcdebug`, Envoy's and Istio's own).
//!
//! Input: the open streams and what each subscribes to. Output: a [`ClientConfig`] per stream. The same
//! in JSON, without resources, is `/debug/syncz`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use millrace_xds::proto::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use millrace_xds::proto::envoy::service::status::v3::client_config::GenericXdsConfig;
use millrace_xds::proto::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use millrace_xds::proto::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use millrace_xds::proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use millrace_xds::proto::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use millrace_xds::push::{SyncState, TypeStatus};
use millrace_xds::server::{ConnectionStatus, Connections};
use regex::{Regex, RegexBuilder};
use tonic::{Request, Response, Status, Streaming};

use crate::serve::MeshSource;

#[cfg(test)]
mod tests;

/// The service, over the streams of one pilot.
#[derive(Debug)]
pub(crate) struct ClientStatuses {
    source: Arc<MeshSource>,
    connections: Connections,
}

impl ClientStatuses {
    /// For `tonic::transport::Server::add_service`.
    pub(crate) fn service(
        source: Arc<MeshSource>,
        connections: Connections,
    ) -> ClientStatusDiscoveryServiceServer<Self> {
        let statuses = Self {
            source,
            connections,
        };
        // Resources of every client at once may be large.
        ClientStatusDiscoveryServiceServer::new(statuses).max_encoding_message_size(usize::MAX)
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for ClientStatuses {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    /// An answer to each message.
    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let (source, connections) = (Arc::clone(&self.source), self.connections.clone());
        let answers = request
            .into_inner()
            .map(move |request| answer(&source, &connections, &request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        answer(&self.source, &self.connections, request.get_ref()).map(Response::new)
    }
}

fn answer(
    source: &MeshSource,
    connections: &Connections,
    request: &ClientStatusRequest,
) -> Result<ClientStatusResponse, Status> {
    let matchers = request
        .node_matchers
        .iter()
        .enumerate()
        .map(|(at, matcher)| NodeId::new(matcher, at))
        .collect::<Result<Vec<_>, _>>()?;
    let wanted = |client: &ConnectionStatus| {
        matchers.is_empty() || matchers.iter().any(|m| m.matches(&client.node_id))
    };
    let clients = connections.status();
    let config = clients
        .iter()
        .filter(|client| wanted(client))
        .map(|client| client_config(source, client, !request.exclude_resource_contents))
        .collect();
    Ok(ClientStatusResponse { config })
}

fn client_config(
    source: &MeshSource,
    client: &ConnectionStatus,
    with_contents: bool,
) -> ClientConfig {
    ClientConfig {
        node: Some(client.node.as_ref().into()),
        generic_xds_configs: client
            .types
            .iter()
            .flat_map(|of_type| resources(source, client, of_type, with_contents))
            .collect(),
        // Several streams of one node are told apart by it.
        client_scope: format!("stream {}", client.id.0),
        ..Default::default()
    }
}

fn resources(
    source: &MeshSource,
    client: &ConnectionStatus,
    of_type: &TypeStatus,
    with_contents: bool,
) -> Vec<GenericXdsConfig> {
    let error = of_type.last_error.as_ref();
    let common = GenericXdsConfig {
        type_url: of_type.type_url.as_str().to_owned(),
        config_status: config_status(of_type.state).into(),
        // What a client made of it only the client knows.
        client_status: ClientResourceStatus::Unknown.into(),
        error_state: error.map(|details| UpdateFailureState {
            details: details.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    source
        .resources_of(client.id, &of_type.type_url)
        .iter()
        .map(|resource| GenericXdsConfig {
            name: resource.name().to_owned(),
            version_info: resource.version().as_str().to_owned(),
            xds_config: with_contents.then(|| resource.to_any()),
            ..common.clone()
        })
        .collect()
}

fn config_status(state: SyncState) -> ConfigStatus {
    match state {
        SyncState::NotSent => ConfigStatus::NotSent,
        SyncState::Synced => ConfigStatus::Synced,
        SyncState::Stale => ConfigStatus::Stale,
        SyncState::Error => ConfigStatus::Error,
    }
}

/// Which node ids are asked for.
enum NodeId {
    Any,
    Equal(String, bool),
    Like(Regex),
}

impl NodeId {
    fn new(matcher: &NodeMatcher, at: usize) -> Result<Self, Status> {
        let refused = |field: &str, why: &str| {
            Status::invalid_argument(format!("node_matchers[{at}].{field}: {why}"))
        };
        if !matcher.node_metadatas.is_empty() {
            return Err(refused("node_metadatas", "nodes are matched by id alone"));
        }
        let Some(StringMatcher {
            match_pattern,
            ignore_case,
        }) = &matcher.node_id
        else {
            return Ok(Self::Any);
        };
        let like = |pattern: &str| {
            RegexBuilder::new(pattern)
                .case_insensitive(*ignore_case)
                .build()
                .map(Self::Like)
                .map_err(|error| refused("node_id", &error.to_string()))
        };
        match match_pattern {
            None => Err(refused("node_id", "a pattern is needed")),
            Some(MatchPattern::Exact(id)) => Ok(Self::Equal(id.clone(), *ignore_case)),
            Some(MatchPattern::Prefix(part)) => like(&format!("^{}", regex::escape(part))),
            Some(MatchPattern::Suffix(part)) => like(&format!("{}$", regex::escape(part))),
            Some(MatchPattern::Contains(part)) => like(&regex::escape(part)),
            // The whole id, as everywhere in xDS; its case is the pattern's own affair.
            Some(MatchPattern::SafeRegex(regex)) => Regex::new(&format!("^(?:{})$", regex.regex))
                .map(Self::Like)
                .map_err(|error| refused("node_id.safe_regex", &error.to_string())),
            Some(_) => Err(refused("node_id", "this kind of pattern is not supported")),
        }
    }

    fn matches(&self, id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Equal(wanted, true) => wanted.eq_ignore_ascii_case(id),
            Self::Equal(wanted, false) => wanted == id,
            Self::Like(pattern) => pattern.is_match(id),
        }
    }
}
