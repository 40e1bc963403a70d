//! Functions of a source: whether one is defined there, and which are too long to be read at once. Counts lines of
//! code between a function's braces as rustfmt sets them: the closing one stands in the column in which the function
//! begins. Called by `cargo xtask layout`.

/// Lines that are neither blank nor comment.
const MAX_LINES: usize = 60;

/// Name, line and length of every function of the text that is too long; tests, which hold tables, are not
/// looked at.
pub(super) fn too_long(text: &str) -> Vec<String> {
    let lines: Vec<&str> = outside_tests(text).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function(line) else {
            continue;
        };
        let length = body(&lines[index..]);
        if length > MAX_LINES {
            let at = index + 1;
            found.push(format!(
                "{at}: `{name}` has {length} lines, {MAX_LINES} at most"
            ));
        }
    }
    found
}

/// Whether the text, its tests apart, defines a function of this name.
pub(super) fn defines(text: &str, name: &str) -> bool {
    outside_tests(text).any(|line| function(line) == Some(name))
}

/// The lines before a module of tests that is written out; one in a file of its own is only named.
pub(super) fn outside_tests(text: &str) -> impl Iterator<Item = &str> {
    let lines = || text.lines();
    let end = lines().zip(lines().skip(1)).position(|(line, next)| {
        line.starts_with("#[cfg(test)]") && next.starts_with("mod ") && next.ends_with('{')
    });
    lines().take(end.unwrap_or(usize::MAX))
}

/// The name of the function that begins in this line.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let qualified = before.split_whitespace().all(|word| {
        ["async", "const", "extern", "pub", "unsafe", "\"C\""].contains(&word)
            || (word.starts_with("pub(") && word.ends_with(')'))
    });
    let name = after.split(['(', '<']).next()?;
    (qualified && !name.is_empty()).then_some(name)
}

/// Lines of code between the braces of the function that begins in the first line.
fn body(lines: &[&str]) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let column = indent(lines[0]);
    let opening = lines
        .iter()
        .position(|line| line.ends_with('{') || line.ends_with(';') || line.ends_with('}'));
    let Some(opening) = opening.filter(|at| lines[*at].ends_with('{')) else {
        return 0;
    };
    lines[opening + 1..]
        .iter()
        .take_while(|line| !(line.starts_with('}') || line.trim() == "}") || indent(line) > column)
        .map(|line| line.trim())
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(lines: usize) -> String {
        let body = "        let x = if y {\n        } else {\n        };\n        // why\n\n"
            .repeat(lines / 3);
        format!(
            "impl A {{\n    pub(crate) async fn long<T>(\n        a: T,\n    ) -> u8\n    where\n        T: B,\n    {{\n{body}    }}\n\n    fn short() {{}}\n}}\n"
        )
    }

    #[test]
    fn lines_of_code_between_the_braces_count() {
        assert_eq!(too_long(&code(60)), Vec::<String>::new());
        let found = too_long(&code(63));
        assert_eq!(found, ["2: `long` has 63 lines, 60 at most"]);
    }

    #[test]
    fn declarations_and_tests_do_not() {
        assert_eq!(function("    fn declared(&self) -> u8;"), Some("declared"));
        assert_eq!(function("    let fn_pointer = 1;"), None);
        assert_eq!(function("// a fn of its own"), None);
        let tests = format!("//! Job.\n#[cfg(test)]\nmod tests {{\n{}}}\n", code(63));
        assert_eq!(too_long(&tests), Vec::<String>::new());
        assert_eq!(body(&["    fn declared();", "    }"]), 0);
        let named = format!("//! Job.\n#[cfg(test)]\nmod tests;\n{}", code(63));
        assert_eq!(too_long(&named).len(), 1);
    }
}
