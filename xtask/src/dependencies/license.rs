//! SPDX licence expressions: `MIT OR (Apache-2.0 WITH LLVM-exception AND ISC)`, and the older `MIT/Apache-2.0`.
//! Whoever may choose needs one allowed alternative; whoever must keep all needs all of them allowed.

use std::iter::Peekable;

use anyhow::{Context as _, bail, ensure};

/// Whether an expression can be satisfied with the allowed licences alone.
pub(super) fn allowed(expression: &str, allowed: &[String]) -> anyhow::Result<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let holds = any(&mut words, allowed)?;
    ensure!(words.next().is_none(), "it goes on after its end");
    Ok(holds)
}

fn any<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &[String],
) -> anyhow::Result<bool> {
    let mut holds = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        holds |= all(words, allowed)?;
    }
    Ok(holds)
}

fn all<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &[String],
) -> anyhow::Result<bool> {
    let mut holds = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        holds &= one(words, allowed)?;
    }
    Ok(holds)
}

fn one<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &[String],
) -> anyhow::Result<bool> {
    let word = words.next().context("it ends where a licence is due")?;
    match word {
        "(" => {
            let holds = any(words, allowed)?;
            ensure!(words.next() == Some(")"), "a parenthesis is not closed");
            Ok(holds)
        }
        ")" | "AND" | "OR" | "WITH" => bail!("{word} stands where a licence is due"),
        license => {
            let mut name = license.to_owned();
            if words.next_if_eq(&"WITH").is_some() {
                let exception = words.next().context("WITH what?")?;
                name = format!("{license} WITH {exception}");
            }
            Ok(allowed.contains(&name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_need_one_and_conjunctions_all() {
        let list = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("MIT/GPL-3.0", true),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(MIT OR GPL-3.0) AND ISC", true),
            ("(MIT OR GPL-3.0) AND BSD-2-Clause", false),
            ("Apache-2.0", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0", true),
        ] {
            assert_eq!(
                allowed(expression, &list).unwrap(),
                expected,
                "{expression}"
            );
        }
        for bad in ["", "MIT OR", "MIT ISC", "(MIT", "AND", "MIT WITH", "MIT)"] {
            assert!(allowed(bad, &list).is_err(), "{bad}");
        }
    }
}
