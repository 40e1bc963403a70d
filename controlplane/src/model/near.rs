//! Which of a service's endpoints a client may use from where it stands.
//!
//! Input: what the service and its `EndpointSlices` say about places; output: the endpoints for one place. The rules
//! are kube-proxy's: `internalTrafficPolicy: Local` keeps to the node; hints count only if every endpoint has them and
//! one fits, those for nodes before those for zones; whoever's place is unknown uses all. Asked by the translation of
//! endpoints, whose cache shares a result by [`Nearness`].

use super::endpoint::Endpoint;

/// How near to a client a service's endpoints are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Anywhere.
    #[default]
    Anywhere,
    /// On the client's node or nowhere: `internalTrafficPolicy: Local`.
    Local,
    /// In the client's zone if there are any: `trafficDistribution: PreferSameZone`, once `PreferClose`.
    PreferZone,
    /// On the client's node, else in its zone, if there are any: `trafficDistribution: PreferSameNode`.
    PreferNode,
}

/// The clients that an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Those in one of these zones.
    pub zones: Vec<String>,
    /// Those on one of these nodes.
    pub nodes: Vec<String>,
}

/// Where a client stands; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The node.
    pub node: String,
    /// The node's zone.
    pub zone: String,
}

/// The part of a place that a choice of endpoints depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// None: every client uses the same endpoints.
    #[default]
    Nothing,
    /// The zone.
    Zone,
    /// The node and its zone.
    Node,
}

impl Reach {
    /// The hints that a cluster writes for an endpoint of such a service.
    pub fn hints(self, zone: Option<&str>, node: Option<&str>) -> Option<Hints> {
        let one = |place: Option<&str>| place.map(str::to_owned).into_iter().collect();
        let hints = match self {
            Self::Anywhere | Self::Local => return None,
            Self::PreferZone => Hints {
                zones: one(zone),
                nodes: Vec::new(),
            },
            Self::PreferNode => Hints {
                zones: one(zone),
                nodes: one(node),
            },
        };
        (hints != Hints::default()).then_some(hints)
    }
}

impl Nearness {
    /// What endpoints with such hints depend on.
    pub fn of_hints(hints: &Hints) -> Self {
        if hints.nodes.is_empty() {
            Self::Zone
        } else {
            Self::Node
        }
    }

    /// The place without what does not matter: clients for whom this is the same use the same endpoints.
    pub fn part_of(self, place: Place) -> Place {
        match self {
            Self::Nothing => Place::default(),
            Self::Zone => Place {
                node: String::new(),
                zone: place.zone,
            },
            Self::Node => place,
        }
    }
}

/// Of the endpoints that a cluster leads to, those that a client at this place uses.
pub fn select<'a>(reach: Reach, endpoints: Vec<&'a Endpoint>, place: &Place) -> Vec<&'a Endpoint> {
    if reach == Reach::Local {
        let here = |endpoint: &&Endpoint| endpoint.node() == Some(&place.node);
        return match place.node.as_str() {
            "" => endpoints,
            _ => endpoints.into_iter().filter(here).collect(),
        };
    }
    let meant = |hinted: fn(&Hints) -> &[String], here: &str| {
        let hinted = |endpoint: &&'a Endpoint| endpoint.hints.as_deref().map_or(&[][..], hinted);
        if here.is_empty() || endpoints.iter().any(|endpoint| hinted(endpoint).is_empty()) {
            return None;
        }
        let fits = |endpoint: &&'a Endpoint| hinted(endpoint).iter().any(|place| place == here);
        let chosen: Vec<&Endpoint> = endpoints.iter().copied().filter(fits).collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    meant(|hints| &hints.nodes, &place.node)
        .or_else(|| meant(|hints| &hints.zones, &place.zone))
        .unwrap_or(endpoints)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::endpoint::Locality;

    fn endpoint(last: u8, node: &str, zones: &[&str], nodes: &[&str]) -> Endpoint {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let hints = Hints {
            zones: texts(zones),
            nodes: texts(nodes),
        };
        Endpoint {
            address: [10, 0, 0, last].into(),
            port: 80,
            hostname: None,
            locality: Locality::default(),
            weight: 1,
            node: Some(node.into()),
            hints: (hints != Hints::default()).then(|| Arc::new(hints)),
            workload: None,
        }
    }

    /// The last parts of the addresses that are chosen.
    fn chosen(reach: Reach, endpoints: &[Endpoint], node: &str, zone: &str) -> Vec<u8> {
        let place = Place {
            node: node.to_owned(),
            zone: zone.to_owned(),
        };
        let chosen = select(reach, endpoints.iter().collect(), &place).into_iter();
        let last = |endpoint: &Endpoint| {
            let text = endpoint.address.to_string();
            text.rsplit('.').next().unwrap().parse().unwrap()
        };
        chosen.map(last).collect()
    }

    #[test]
    fn hints_count_if_all_have_them_and_one_fits() {
        let mut endpoints = vec![
            endpoint(1, "n1", &["a"], &[]),
            endpoint(2, "n2", &["b"], &[]),
            endpoint(3, "n3", &["a", "b"], &[]),
        ];
        for (zone, want) in [
            ("a", vec![1, 3]),
            ("b", vec![2, 3]),
            ("c", vec![1, 2, 3]),
            ("", vec![1, 2, 3]),
        ] {
            let got = chosen(Reach::Anywhere, &endpoints, "n1", zone);
            assert_eq!(got, want, "{zone:?}");
        }
        endpoints.push(endpoint(4, "n4", &[], &[]));
        let got = chosen(Reach::Anywhere, &endpoints, "n1", "a");
        assert_eq!(got, [1, 2, 3, 4]);
    }

    #[test]
    fn a_nodes_own_endpoints_come_before_its_zones() {
        let endpoints = [
            endpoint(1, "n1", &["a"], &["n1"]),
            endpoint(2, "n2", &["a"], &["n2"]),
            endpoint(3, "n3", &["b"], &["n3"]),
        ];
        let at = |node, zone| chosen(Reach::PreferNode, &endpoints, node, zone);
        assert_eq!(at("n2", "a"), [2]);
        assert_eq!(at("n9", "a"), [1, 2]);
        assert_eq!(at("n9", "z"), [1, 2, 3]);
    }

    #[test]
    fn a_local_policy_keeps_to_the_node_whatever_hints_say() {
        let endpoints = [
            endpoint(1, "n1", &["a"], &[]),
            endpoint(2, "n2", &["b"], &[]),
        ];
        let at = |node| chosen(Reach::Local, &endpoints, node, "a");
        assert_eq!(at("n2"), [2]);
        assert_eq!(at("n3"), [0_u8; 0]);
        assert_eq!(at(""), [1, 2]);
    }

    #[test]
    fn a_preference_writes_the_hints_of_a_clusters_controller() {
        let hints = |reach: Reach| reach.hints(Some("a"), Some("n1"));
        assert_eq!(hints(Reach::Anywhere), None);
        assert_eq!(hints(Reach::Local), None);
        let zone = hints(Reach::PreferZone).unwrap();
        assert_eq!((zone.zones, zone.nodes), (vec!["a".to_owned()], vec![]));
        let node = hints(Reach::PreferNode).unwrap();
        assert_eq!(Nearness::of_hints(&node), Nearness::Node);
        assert_eq!((&*node.zones[0], &*node.nodes[0]), ("a", "n1"));
        assert_eq!(Reach::PreferZone.hints(None, Some("n1")), None);
    }
}
