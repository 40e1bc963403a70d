//! Names of resources, each its own type so that one cannot stand in for another.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

macro_rules! resource_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it stands in xDS.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                Self(name.into())
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

resource_name!(
    /// Name of a listener, for example `default/0.0.0.0_9080`.
    ListenerName
);
resource_name!(
    /// Name of a route configuration, for example `default/9080`.
    RouteConfigName
);
resource_name!(
    /// Name of a cluster, for example `outbound|9080|v1|reviews.default.svc.cluster.local`.
    ClusterName
);
