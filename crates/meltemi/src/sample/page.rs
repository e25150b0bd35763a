// SPDX-License-Identifier: Apache-2.0
//! Bookinfo's page: details and reviews side by side, or what is missing.

use std::fmt::Write as _;

use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::bookinfo::{Upstreams, fetch};

const TITLE: &str = "The Comedy of Errors";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#1b1f24}header{background:#17406b;color:#fff;\
    padding:1rem 2rem}main{max-width:60rem;margin:auto;padding:1rem 2rem;display:grid;grid-template-columns:1fr 2fr;gap:2rem}\
    h1{text-align:center}dt{font-weight:600}dd{margin:0 0 .5rem}blockquote{margin:0 0 1rem;padding:.5rem 1rem;border-left:4px \
    solid #c7d3e0}.error{color:#a11}";

pub(super) fn routes(upstreams: Upstreams) -> Router {
    let (details, reviews) = (upstreams.clone(), upstreams.clone());
    let page = move |headers: HeaderMap| async move {
        let (details, reviews) = tokio::join!(
            fetch(&upstreams.details, "/details/0", &headers),
            fetch(&upstreams.reviews, "/reviews/0", &headers)
        );
        Html(render(details.as_ref().ok(), reviews.as_ref().ok()))
    };
    let part = |upstream: String, path: &'static str| {
        move |Path(id): Path<u32>, headers: HeaderMap| async move {
            let answer = fetch(&upstream, &format!("/{path}/{id}"), &headers).await;
            Json(answer.unwrap_or_else(|e| json!({"error": e.to_string()})))
        }
    };
    Router::new()
        .route("/productpage", get(page.clone()))
        .route("/", get(page))
        .route("/health", get(|| async { "Product page is healthy" }))
        .route("/login", get(|| async { Html("<p>This sample has no accounts.</p>") }))
        .route("/logout", get(|| async { Html("<p>This sample has no accounts.</p>") }))
        .route("/api/v1/products", get(|| async { Json(json!([{"id": 0, "title": TITLE}])) }))
        .route("/api/v1/products/{id}", get(part(details.details, "details")))
        .route("/api/v1/products/{id}/reviews", get(part(reviews.reviews, "reviews")))
}

fn render(details: Option<&Value>, reviews: Option<&Value>) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Simple Bookstore App</title>\
         <style>{STYLE}</style></head>\n<body><header>BookInfo Sample</header>\n<h1>{TITLE}</h1>\n<main>\n<section>"
    );
    match details {
        Some(details) => {
            html.push_str("<h2>Book Details</h2><dl>");
            for (label, key) in [("Type", "type"), ("Pages", "pages"), ("Publisher", "publisher"), ("Language", "language"), ("ISBN-10", "ISBN-10"), ("ISBN-13", "ISBN-13")] {
                let _ = write!(html, "<dt>{label}</dt><dd>{}</dd>", text(&details[key]));
            }
            html.push_str("</dl>");
        }
        None => html.push_str(
            "<h2>Error fetching product details!</h2><p class=\"error\">Sorry, product details are currently unavailable for this book.</p>",
        ),
    }
    html.push_str("</section>\n<section>");
    match reviews {
        Some(reviews) => {
            html.push_str("<h2>Book Reviews</h2>");
            for review in reviews["reviews"].as_array().into_iter().flatten() {
                let _ = write!(html, "<blockquote><p>{}</p><footer>{}</footer>{}</blockquote>", text(&review["text"]), text(&review["reviewer"]), stars(&review["rating"]));
            }
            let _ = write!(html, "<p>Reviews served by: <b>{}</b></p>", text(&reviews["podname"]));
        }
        None => html.push_str(
            "<h2>Error fetching product reviews!</h2><p class=\"error\">Sorry, product reviews are currently unavailable for this book.</p>",
        ),
    }
    html.push_str("</section>\n</main></body></html>\n");
    html
}

fn stars(rating: &Value) -> String {
    if let Some(error) = rating["error"].as_str() {
        return format!("<p class=\"error\"><i>{}</i></p>", escape(error));
    }
    let Some(count) = rating["stars"].as_u64().filter(|c| *c <= 5) else { return String::new() };
    let color = if rating["color"] == "red" { "red" } else { "black" };
    let filled: String = (1..=5).map(|n| if n <= count { '★' } else { '☆' }).collect();
    format!("<p style=\"color:{color}\" aria-label=\"{count} of 5 stars\">{filled}</p>")
}

fn text(value: &Value) -> String {
    escape(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let reviews = |rating: Value| json!({"podname": "p", "reviews": [{"reviewer": "r", "text": "<b>", "rating": rating}]});
        let full = render(
            Some(&json!({"type": "paperback", "pages": 200})),
            Some(&reviews(json!({"stars": 4, "color": "red"}))),
        );
        assert!(
            full.contains("<title>Simple Bookstore App</title>")
                && full.contains("★★★★☆")
                && full.contains("&lt;b&gt;")
        );
        let error =
            render(None, Some(&reviews(json!({"error": "Ratings service is currently unavailable"}))));
        assert!(
            error.contains("product details are currently unavailable")
                && error.contains("Ratings service is currently unavailable")
        );
        assert!(render(None, None).contains("product reviews are currently unavailable"));
    }
}
