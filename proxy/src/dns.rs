//! DNS for the pods of this node: mesh names are answered here, everything else is forwarded.

pub mod names;
