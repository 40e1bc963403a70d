//! What the admin port shows of the configuration: every resource with its version, what is
//! warming, what was refused and why, what is not executed, and how new all of it is.
//!
//! Input: the state behind a [`Handle`]. Output: JSON in the shape of Envoy's `/config_dump`.

use std::time::SystemTime;

use bytes::Bytes;
use millrace_xds::client::ConnectionState;
use millrace_xds::proto::Any;
use millrace_xds::{TypeUrl, json};
use serde_json::{Map, Value, json};

use super::client::Handle;
use super::convert::Unsupported;
use super::table::{Entry, Held, Rejected, Table};
use crate::access_log::time::Civil;

/// What `/config_dump` is asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Field of a dump, such as `dynamic_listeners`; `None` is all.
    pub resource: Option<String>,
    /// Part of a resource's name; `None` is all.
    pub name: Option<String>,
}

/// How one type is shown.
struct Section<'a> {
    dump: &'a str,
    type_url: TypeUrl,
    /// Key of the message within an item.
    key: &'a str,
    active: &'a str,
    warming: &'a str,
}

impl Handle {
    /// `configs` of `/config_dump`, without the static part.
    pub fn dump(&self, filter: &Filter) -> Vec<Value> {
        let state = self.state.lock();
        let section = |dump, type_url, key, active, warming| Section {
            dump,
            type_url,
            key,
            active,
            warming,
        };
        vec![
            section(
                "ClustersConfigDump",
                TypeUrl::CLUSTER,
                "cluster",
                "dynamic_active_clusters",
                "dynamic_warming_clusters",
            )
            .show(&state.clusters, filter),
            section(
                "ListenersConfigDump",
                TypeUrl::LISTENER,
                "listener",
                "dynamic_listeners",
                "dynamic_listeners",
            )
            .show_listeners(&state.listeners, filter),
            section(
                "RoutesConfigDump",
                TypeUrl::ROUTE,
                "route_config",
                "dynamic_route_configs",
                "dynamic_warming_route_configs",
            )
            .show(&state.routes, filter),
            section(
                "EndpointsConfigDump",
                TypeUrl::ENDPOINT,
                "endpoint_config",
                "dynamic_endpoint_configs",
                "dynamic_warming_endpoint_configs",
            )
            .show(&state.endpoints, filter),
            section(
                "NamesConfigDump",
                TypeUrl::NAME_TABLE,
                "name_table",
                "name_tables",
                "warming_name_tables",
            )
            .show(&state.names, filter),
        ]
    }

    /// Every served or warming resource that asks for something in vain.
    pub fn unsupported(&self) -> Vec<Value> {
        let state = self.state.lock();
        let mut found = Vec::new();
        list_unsupported(&mut found, "listener", &state.listeners);
        list_unsupported(&mut found, "route configuration", &state.routes);
        list_unsupported(&mut found, "cluster", &state.clusters);
        list_unsupported(&mut found, "endpoints", &state.endpoints);
        found
    }

    /// Every resource whose newest version was refused.
    pub fn rejected(&self) -> Vec<Value> {
        let state = self.state.lock();
        let mut found = Vec::new();
        list_rejected(&mut found, "listener", &state.listeners);
        list_rejected(&mut found, "route configuration", &state.routes);
        list_rejected(&mut found, "cluster", &state.clusters);
        list_rejected(&mut found, "endpoints", &state.endpoints);
        list_rejected(&mut found, "name table", &state.names);
        found
    }

    /// Where the connection to the control plane stands and how new the served state is.
    pub fn freshness(&self) -> Value {
        let freshness = self.freshness.lock().clone();
        let connection = self.connection.as_ref().map(|c| c.borrow().clone());
        json!({
            "control_plane": connection.as_ref().map(connection_text),
            "connected": self.is_connected(),
            "serving": match (&connection, freshness.restored) {
                (None, _) => "static",
                (Some(_), true) => "saved state",
                (Some(_), false) => "control plane",
            },
            "last_update": freshness.last_update.map(text),
            "last_saved": freshness.last_saved.map(text),
            "saved": freshness.saved_changes == freshness.changes,
        })
    }

    /// Whether the stream to the control plane is open; false without a control plane.
    pub fn is_connected(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|c| matches!(*c.borrow(), ConnectionState::Connected { .. }))
    }
}

impl Section<'_> {
    fn show<T>(&self, table: &Table<T>, filter: &Filter) -> Value {
        let mut active = Vec::new();
        let mut warming = Vec::new();
        for (name, entry) in table.iter().filter(|(name, _)| filter.takes(name)) {
            if let Some((held, _)) = &entry.warming {
                warming.push(self.item(held, entry));
            }
            match &entry.serving {
                Some(held) => active.push(self.item(held, entry)),
                None if entry.rejected.is_some() => active.push(refused(name, entry)),
                None => {}
            }
        }
        let mut dump = self.begin();
        for (key, items) in [(self.active, active), (self.warming, warming)] {
            if filter.shows(key) && !(items.is_empty() && key == self.warming) {
                dump.insert(key.to_owned(), Value::Array(items));
            }
        }
        Value::Object(dump)
    }

    fn show_listeners<T>(&self, table: &Table<T>, filter: &Filter) -> Value {
        let items = table.iter().filter(|(name, _)| filter.takes(name));
        let items = items.map(|(name, entry)| {
            let mut item = Map::new();
            item.insert("name".to_owned(), json!(name));
            let held = entry.warming.as_ref().map(|(held, _)| held);
            for (key, held) in [
                ("active_state", entry.serving.as_ref()),
                ("warming_state", held),
            ] {
                if let Some(held) = held {
                    item.insert(key.to_owned(), self.state(held));
                }
            }
            add_error(&mut item, entry.rejected.as_ref());
            Value::Object(item)
        });
        let mut dump = self.begin();
        if filter.shows(self.active) {
            dump.insert(self.active.to_owned(), items.collect());
        }
        Value::Object(dump)
    }

    fn begin(&self) -> Map<String, Value> {
        let url = format!("type.googleapis.com/envoy.admin.v3.{}", self.dump);
        Map::from_iter([("@type".to_owned(), json!(url))])
    }

    fn item<T>(&self, held: &Held<T>, entry: &Entry<T>) -> Value {
        let Value::Object(mut item) = self.state(held) else {
            return Value::Null;
        };
        if entry.doomed.is_some() {
            item.insert("removal_pending".to_owned(), json!(true));
        }
        add_error(&mut item, entry.rejected.as_ref());
        Value::Object(item)
    }

    fn state<T>(&self, held: &Held<T>) -> Value {
        json!({
            "version_info": held.version,
            "last_updated": text(held.updated),
            self.key: self.message(&held.body),
        })
    }

    fn message(&self, body: &Bytes) -> Value {
        let any = Any {
            type_url: self.type_url.as_str().to_owned(),
            value: body.to_vec(),
        };
        json::any_to_value(&any)
            .unwrap_or_else(|error| json!({"@type": any.type_url, "not_shown": error.to_string()}))
    }
}

impl Filter {
    fn takes(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|part| name.contains(part))
    }

    fn shows(&self, key: &str) -> bool {
        self.resource.as_ref().is_none_or(|wanted| wanted == key)
    }
}

fn refused<T>(name: &str, entry: &Entry<T>) -> Value {
    let mut item = Map::from_iter([("name".to_owned(), json!(name))]);
    add_error(&mut item, entry.rejected.as_ref());
    Value::Object(item)
}

fn add_error(item: &mut Map<String, Value>, rejected: Option<&Rejected>) {
    let status = if rejected.is_some() {
        "NACKED"
    } else {
        "ACKED"
    };
    item.insert("client_status".to_owned(), json!(status));
    if let Some(rejected) = rejected {
        item.insert("error_state".to_owned(), error(rejected));
    }
}

fn error(rejected: &Rejected) -> Value {
    json!({
        "details": rejected.message,
        "version_info": rejected.version,
        "last_update_attempt": text(rejected.at),
    })
}

fn list_unsupported<T>(found: &mut Vec<Value>, kind: &str, table: &Table<T>) {
    for (name, entry) in table.iter() {
        let newest = entry.held().last();
        if let Some(held) = newest.filter(|held| !held.unsupported.is_empty()) {
            found.push(unsupported(&format!("{kind} {name:?}"), &held.unsupported));
        }
    }
}

/// One resource with what it asks for in vain.
pub fn unsupported(resource: &str, fields: &[Unsupported]) -> Value {
    json!({"resource": resource, "fields": fields})
}

fn list_rejected<T>(found: &mut Vec<Value>, kind: &str, table: &Table<T>) {
    for (name, entry) in table.iter() {
        if let Some(rejected) = &entry.rejected {
            let mut item = error(rejected);
            item["resource"] = json!(format!("{kind} {name:?}"));
            found.push(item);
        }
    }
}

fn connection_text(state: &ConnectionState) -> String {
    match state {
        ConnectionState::Connecting { attempt } => format!("connecting, attempt {attempt}"),
        ConnectionState::Connected { control_plane } => match control_plane {
            Some(name) => format!("connected to {name}"),
            None => "connected".to_owned(),
        },
        ConnectionState::Disconnected { error, retry_in } => {
            format!("disconnected, retry in {retry_in:?}: {error}")
        }
        ConnectionState::Closed => "closed".to_owned(),
    }
}

fn text(time: SystemTime) -> String {
    Civil::new(time).to_string()
}
