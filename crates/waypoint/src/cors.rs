// SPDX-License-Identifier: Apache-2.0
//! CORS: what a browser is told of the origins that may read an answer (<https://fetch.spec.whatwg.org/#http-cors-protocol>,
//! Gateway API `HTTPCORSFilter`). It is said after the policies have permitted the request, and permits nothing itself.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use meltemi_model::l7::{Cors, Filter};

/// Headers of an answer by which a backend would speak of CORS itself; where a filter does, it alone does.
const OWN: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// The CORS filter among all; one, since a rule may have no second.
pub(crate) fn of<'a>(mut filters: impl Iterator<Item = &'a Filter>) -> Option<&'a Cors> {
    filters.find_map(|filter| match filter {
        Filter::Cors { cors } => Some(cors),
        _ => None,
    })
}

/// Whether a browser asks if it may send another request.
pub(crate) fn is_preflight<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// What the answer to a preflight request says; nothing for an origin that may not read answers.
pub(crate) fn preflight(cors: &Cors, request: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    out.insert(VARY, HeaderValue::from_static("Origin"));
    let Some(said) = headers(cors, request).filter(|said| said.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN))
    else {
        return out;
    };
    out.extend(said);
    for (name, list, asked) in [
        (ACCESS_CONTROL_ALLOW_METHODS, &cors.methods, ACCESS_CONTROL_REQUEST_METHOD),
        (ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers, ACCESS_CONTROL_REQUEST_HEADERS),
    ] {
        // `*` is what was asked for: with credentials browsers take it for a name.
        let value = match list.iter().any(|item| item == "*") {
            true => request.get(&asked).cloned(),
            false => joined(list),
        };
        if let Some(value) = value {
            out.insert(name, value);
        }
    }
    out.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.into());
    out
}

/// What the answer to a request says; none for a request that no browser sent for a page of another origin.
pub(crate) fn headers(cors: &Cors, request: &HeaderMap) -> Option<HeaderMap> {
    let mut origins = request.get_all(ORIGIN).iter();
    let origin = origins.next()?;
    let mut out = HeaderMap::new();
    let is_one = origins.next().is_none();
    if !is_one || !origin.to_str().is_ok_and(|origin| cors.allows(origin)) {
        return Some(out);
    }
    out.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.credentials {
        out.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    // With credentials `*` would be a name.
    let exposed = cors.exposed.iter().filter(|name| !cors.credentials || *name != "*");
    if let Some(value) = joined(&exposed.cloned().collect::<Vec<_>>()) {
        out.insert(ACCESS_CONTROL_EXPOSE_HEADERS, value);
    }
    Some(out)
}

/// Puts what is said into an answer, in the place of what the backend says.
pub(crate) fn apply(answer: &mut HeaderMap, said: HeaderMap) {
    for name in OWN {
        answer.remove(name);
    }
    answer.extend(said);
    // The answer depends on the origin: caches must not give it to another one.
    answer.append(VARY, HeaderValue::from_static("Origin"));
}

fn joined(list: &[String]) -> Option<HeaderValue> {
    let text = list.join(", ");
    if text.is_empty() { None } else { HeaderValue::from_str(&text).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors() -> Cors {
        let all = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        Cors {
            origins: all(&["https://a.example"]),
            methods: all(&["GET", "PUT"]),
            headers: all(&["*"]),
            exposed: all(&["x-a", "*"]),
            credentials: true,
            max_age: 60,
        }
    }

    fn request(origin: &str) -> HeaderMap {
        [
            (ORIGIN, origin),
            (ACCESS_CONTROL_REQUEST_METHOD, "PUT"),
            (ACCESS_CONTROL_REQUEST_HEADERS, "x-one, x-two"),
        ]
        .into_iter()
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
    }

    fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn a_preflight_is_told_what_the_filter_allows() {
        let said = preflight(&cors(), &request("https://a.example"));
        assert_eq!(text(&said, ACCESS_CONTROL_ALLOW_ORIGIN), Some("https://a.example"));
        assert_eq!(text(&said, ACCESS_CONTROL_ALLOW_METHODS), Some("GET, PUT"));
        assert_eq!(
            text(&said, ACCESS_CONTROL_ALLOW_HEADERS),
            Some("x-one, x-two"),
            "never * with credentials"
        );
        assert_eq!(text(&said, ACCESS_CONTROL_EXPOSE_HEADERS), Some("x-a"), "never * with credentials");
        assert_eq!(text(&said, ACCESS_CONTROL_ALLOW_CREDENTIALS), Some("true"));
        assert_eq!(text(&said, ACCESS_CONTROL_MAX_AGE), Some("60"));
        let said = preflight(&cors(), &request("https://b.example"));
        assert!(OWN.iter().all(|name| !said.contains_key(name)), "{said:?}");
        assert_eq!(text(&said, VARY), Some("Origin"));
    }

    #[test]
    fn an_answer_says_what_the_filter_says_and_not_what_the_backend_says() {
        for (origin, expected) in
            [("https://a.example", Some("https://a.example")), ("https://b.example", None)]
        {
            let mut answer = HeaderMap::new();
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            apply(&mut answer, headers(&cors(), &request(origin)).unwrap());
            assert_eq!(text(&answer, ACCESS_CONTROL_ALLOW_ORIGIN), expected, "{origin}");
        }
        let mut two = request("https://a.example");
        two.append(ORIGIN, HeaderValue::from_static("https://b.example"));
        assert!(headers(&cors(), &two).unwrap().is_empty(), "two origins are none");
        assert!(headers(&cors(), &HeaderMap::new()).is_none(), "no browser asks");
    }
}
