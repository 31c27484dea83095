//! The page for people: every operation of the document, and a form to try one.

use std::fmt::Write as _;

use serde_json::Value;

const FRAME: &str = include_str!("page.html");
/// Where the operations go.
const PLACE: &str = "<!-- operations -->";

/// The page of a document.
pub(super) fn render(document: &Value) -> String {
    let mut operations = String::new();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            section(&mut operations, &format!("{} {path}", method.to_uppercase()), operation);
        }
    }
    FRAME.replace(PLACE, &operations)
}

/// Writing to a string cannot fail, so the results are not looked at.
fn section(page: &mut String, title: &str, operation: &Value) {
    let _ = write!(page, "<section><h2><code>{}</code> {}</h2>", escape(title), text(&operation["summary"]));
    let _ = write!(page, "<p>{}</p>", text(&operation["description"]));
    let bodies = operation["requestBody"]["content"].as_object().into_iter().flat_map(serde_json::Map::keys);
    let bodies: Vec<_> = bodies.map(|media_type| format!("<code>{}</code>", escape(media_type))).collect();
    if !bodies.is_empty() {
        let _ = write!(page, "<p>Body: {}</p>", bodies.join(", "));
    }
    let parameters = operation["parameters"].as_array().into_iter().flatten().map(|parameter| {
        let place = format!("{}, {}", text(&parameter["in"]), kind(&parameter["schema"]));
        [text(&parameter["name"]), place, text(&parameter["description"])]
    });
    table(page, ["Parameter", "Where and what", "Meaning"], parameters);
    let responses = operation["responses"].as_object().into_iter().flatten().map(|(status, response)| {
        let media_types = response["content"].as_object().into_iter().flat_map(serde_json::Map::keys);
        let media_types: Vec<_> = media_types.map(String::as_str).collect();
        [escape(status), escape(&media_types.join(", ")), text(&response["description"])]
    });
    table(page, ["Status", "Content", "When"], responses);
    page.push_str("</section>");
}

fn table(page: &mut String, head: [&str; 3], rows: impl Iterator<Item = [String; 3]>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    let [first, second, third] = head;
    let _ = write!(page, "<table><tr><th>{first}<th>{second}<th>{third}</tr>");
    for [first, second, third] in rows {
        let _ = write!(page, "<tr><td><code>{first}</code><td>{second}<td>{third}</tr>");
    }
    page.push_str("</table>");
}

/// Type and range of a parameter.
fn kind(schema: &Value) -> String {
    let range = match (&schema["minimum"], &schema["maximum"]) {
        (Value::Null, _) => String::new(),
        (minimum, Value::Null) => format!(" from {minimum}"),
        (minimum, maximum) => format!(" {minimum} to {maximum}"),
    };
    text(&schema["type"]) + &range
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
