//! String, header and query matchers (Envoy `type.matcher.v3` and `route.v3`).

use std::ops::Range;

use http::HeaderName;
use regex::Regex;

/// How one string is compared.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    /// Equal to the value; `ignore_case` folds ASCII case.
    Exact {
        /// The value to equal.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// Begins with the value.
    Prefix {
        /// The prefix.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// Ends with the value.
    Suffix {
        /// The suffix.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// Has the value somewhere.
    Contains {
        /// The part looked for.
        value: String,
        /// Whether ASCII case is folded.
        ignore_case: bool,
    },
    /// The whole string matches (the expression is anchored at both ends when built).
    Regex(Regex),
}

/// One condition on a request header. Several values of one name are joined with `,` first.
#[derive(Clone, Debug)]
pub struct HeaderMatcher {
    /// Lower-case name; `:method`, `:path`, `:authority` and `:scheme` are pseudo headers.
    pub name: HeaderMatcherName,
    /// What the value must be.
    pub value: HeaderValueMatcher,
    /// Whether the outcome is inverted.
    pub invert: bool,
    /// Whether an absent header counts as the empty string.
    pub treat_missing_as_empty: bool,
}

/// The header that a [`HeaderMatcher`] looks at.
#[derive(Clone, Debug)]
pub enum HeaderMatcherName {
    /// An ordinary header.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:path`, query included.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
}

/// What a header's value must be.
#[derive(Clone, Debug)]
pub enum HeaderValueMatcher {
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// A base-10 integer in the half-open range.
    Range(Range<i64>),
    /// A string comparison.
    String(StringMatcher),
}

/// One condition on a query parameter.
#[derive(Clone, Debug)]
pub struct QueryMatcher {
    /// Name of the parameter.
    pub name: String,
    /// `None`: it must be present with any value.
    pub value: Option<StringMatcher>,
}
