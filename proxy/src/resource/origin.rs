//! Where a resource comes from, in the configuration that people write.

use std::sync::Arc;

use serde::Serialize;

/// The object that a resource was made from, as the control plane says. Nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The object, as Istio writes it (`filter_metadata.istio.config`):
    /// `/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews`.
    pub config: Arc<str>,
    /// The field of that object, such as `spec.http[0]`; `None` for the whole object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Arc<str>>,
}
