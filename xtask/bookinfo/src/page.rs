//! The HTML of the product page; everything that came from elsewhere is escaped.

use std::fmt::Write as _;

use serde_json::Value;

type Section = Result<Value, &'static str>;

pub(crate) fn index() -> String {
    document(
        "Simple Bookstore App",
        "<h3>Hello! This is a simple bookstore application consisting of three services</h3>\n\
         <ul><li><a href=\"/productpage?u=normal\">Normal user</a></li>\
         <li><a href=\"/productpage?u=test\">Test user</a></li></ul>",
    )
}

pub(crate) fn render(
    product: &Value,
    details: &Section,
    reviews: &Section,
    user: Option<&str>,
) -> String {
    let mut body = String::new();
    if let Some(user) = user {
        line(&mut body, &format!("<p>Signed in as {}</p>", escape(user)));
    }
    // The product is this program's own text, with its markup.
    let text = |key: &str| product[key].as_str().unwrap_or_default();
    line(
        &mut body,
        &format!(
            "<h3>{}</h3>\n<p>{}</p>",
            text("title"),
            text("descriptionHtml")
        ),
    );
    section(&mut body, "Book Details", details, facts);
    section(&mut body, "Book Reviews", reviews, opinions);
    document("Simple Bookstore App", &body)
}

fn section(body: &mut String, title: &str, part: &Section, show: fn(&mut String, &Value)) {
    match part {
        Ok(value) => {
            line(body, &format!("<h4>{title}</h4>"));
            show(body, value);
        }
        Err(message) => {
            let fetching = format!("Error fetching {}!", title.to_lowercase());
            line(body, &format!("<h4>{fetching}</h4>\n<p>{message}</p>"));
        }
    }
}

fn facts(body: &mut String, details: &Value) {
    let named = [
        ("Type", "type"),
        ("Pages", "pages"),
        ("Publisher", "publisher"),
        ("Language", "language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    ];
    line(body, "<dl>");
    for (name, key) in named {
        let value = match &details[key] {
            Value::String(text) => escape(text),
            other => escape(&other.to_string()),
        };
        line(body, &format!("<dt>{name}:</dt><dd>{value}</dd>"));
    }
    line(body, "</dl>");
}

fn opinions(body: &mut String, reviews: &Value) {
    for review in reviews["reviews"].as_array().into_iter().flatten() {
        let text = |key: &str| escape(review[key].as_str().unwrap_or_default());
        line(
            body,
            &format!(
                "<blockquote><p>{}</p><small>{}</small>",
                text("text"),
                text("reviewer")
            ),
        );
        stars(body, &review["rating"]);
        line(body, "</blockquote>");
    }
    let served_by = escape(reviews["podname"].as_str().unwrap_or_default());
    line(
        body,
        &format!("<p>Reviews served by: <u>{served_by}</u></p>"),
    );
}

fn stars(body: &mut String, rating: &Value) {
    if let Some(message) = rating["error"].as_str() {
        line(body, &format!("<p><i>{}</i></p>", escape(message)));
    }
    let Some(count) = rating["stars"].as_u64() else {
        return;
    };
    let color = escape(rating["color"].as_str().unwrap_or_default());
    let star = |full: bool| {
        let kind = if full {
            "glyphicon-star"
        } else {
            "glyphicon-star-empty"
        };
        format!(
            "<span class=\"glyphicon {kind}\">{}</span>",
            if full { "★" } else { "☆" }
        )
    };
    let shown: String = (0..5).map(|n| star(n < count)).collect();
    line(body, &format!("<font color=\"{color}\">{shown}</font>"));
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html>\n<head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body>\n{body}</body>\n</html>\n"
    )
}

fn line(body: &mut String, text: &str) {
    // Writing to a String cannot fail.
    writeln!(body, "{text}").ok();
}

fn escape(text: &str) -> String {
    text.chars().fold(
        String::with_capacity(text.len()),
        |mut escaped, character| {
            match character {
                '&' => escaped.push_str("&amp;"),
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '"' => escaped.push_str("&quot;"),
                '\'' => escaped.push_str("&#39;"),
                other => escaped.push(other),
            }
            escaped
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_other_services_say_is_escaped() {
        let reviews =
            json!({ "podname": "<b>", "reviews": [{ "text": "a<script>", "reviewer": "&" }] });
        let page = render(&json!({}), &Err("gone"), &Ok(reviews), Some("<u>"));
        assert!(
            page.contains("a&lt;script&gt;") && page.contains("&lt;b&gt;"),
            "{page}"
        );
        assert!(
            page.contains("Error fetching book details!") && page.contains("gone"),
            "{page}"
        );
    }

    #[test]
    fn stars_have_the_colour_of_the_version() {
        let rated =
            |color: &str| json!({ "reviews": [{ "rating": { "stars": 4, "color": color } }] });
        let page = render(&json!({}), &Err(""), &Ok(rated("red")), None);
        assert_eq!(page.matches("glyphicon-star\"").count(), 4);
        assert!(page.contains("<font color=\"red\">"), "{page}");
    }
}
