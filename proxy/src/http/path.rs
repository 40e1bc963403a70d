//! Normalisation of paths before they are matched (RFC 3986 section 6, `normalize_path` and
//! `merge_slashes` of the connection manager).

use std::borrow::Cow;

/// The path and query in normal form: dot segments resolved, unreserved characters decoded,
/// hex digits of escapes in capitals, adjacent slashes merged where asked. `None` where the path
/// is not valid.
pub fn normalise(path_and_query: &str, merge_slashes: bool) -> Option<Cow<'_, str>> {
    let end = path_and_query.find('?').unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(end);
    if !path.starts_with('/') {
        return None;
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("/.");
    if plain && !(merge_slashes && path.contains("//")) {
        return Some(Cow::Borrowed(path_and_query));
    }
    let decoded = decode_unreserved(path)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded.split(['/', '\\']).skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            "" if merge_slashes && !last => {}
            _ => segments.push(part),
        }
    }
    Some(Cow::Owned(format!("/{}{query}", segments.join("/"))))
}

/// Decodes escapes of unreserved characters; a broken escape makes the path invalid.
fn decode_unreserved(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let digits = rest.get(at + 1..at + 3)?;
        let value = u8::from_str_radix(digits, 16).ok()?;
        if value.is_ascii_alphanumeric() || b"-._~".contains(&value) {
            out.push(char::from(value));
        } else {
            out.push('%');
            out.push_str(&digits.to_ascii_uppercase());
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::normalise;

    #[test]
    fn paths_come_into_normal_form() {
        for (path, merge, expected) in [
            ("/a/b?x=/../y", false, Some("/a/b?x=/../y")),
            ("/a/../b", false, Some("/b")),
            ("/a/./b/", false, Some("/a/b/")),
            ("/a/..", false, Some("/")),
            ("/../../etc", false, Some("/etc")),
            ("/%61/%2e%2E/b", false, Some("/b")),
            ("/a%2fb", false, Some("/a%2Fb")),
            ("/a\\..\\b", false, Some("/b")),
            ("/a//b", false, Some("/a//b")),
            ("/a//b//", true, Some("/a/b/")),
            ("/a%2", false, None),
            ("/a%zz", false, None),
            ("a", false, None),
        ] {
            let got = normalise(path, merge);
            assert_eq!(got.as_deref(), expected, "{path}");
        }
    }
}
