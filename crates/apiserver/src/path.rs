// SPDX-License-Identifier: Apache-2.0
//! What a request asks for, read from its method and path: verb, resource, namespace, name, subresource.

use axum::http::Method;

use crate::status::Refusal;

/// A request for a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Namespace, when the path names one.
    pub namespace: Option<String>,
    /// Object, when the path names one.
    pub name: Option<String>,
    /// Subresource, when the path names one.
    pub subresource: Option<String>,
    /// The path says that it is a watch (`/api/v1/watch/…`), as clients of long ago ask for one.
    pub is_watch: bool,
}

/// Reads `/api/v1/...` and `/apis/<group>/<version>/...`. `None` for other paths, and for those with an empty segment:
/// an empty namespace would be judged as the whole cluster and served as a namespace.
pub fn target(path: &str) -> Option<Target> {
    let mut parts = path.strip_prefix('/')?.trim_end_matches('/').split('/');
    let (group, version) = match parts.next()? {
        "api" => (String::new(), parts.next()?.to_owned()),
        "apis" => (parts.next()?.to_owned(), parts.next()?.to_owned()),
        _ => return None,
    };
    let rest: Vec<String> = parts
        .map(|part| {
            percent_encoding::percent_decode_str(part).decode_utf8().ok().map(std::borrow::Cow::into_owned)
        })
        .collect::<Option<_>>()?;
    if rest.iter().any(String::is_empty) {
        return None;
    }
    let (is_watch, rest) = match rest.as_slice() {
        [watch, rest @ ..] if watch == "watch" && !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let build =
        |namespace: Option<&String>, resource: &str, name: Option<&String>, sub: Option<&String>| Target {
            group: group.clone(),
            version: version.clone(),
            resource: resource.to_owned(),
            namespace: namespace.cloned(),
            name: name.cloned(),
            subresource: sub.cloned(),
            is_watch,
        };
    // Namespaces are themselves a resource: /namespaces/x and /namespaces/x/status|finalize name a Namespace, which is
    // in no namespace itself.
    let target = match rest {
        [resource] => Some(build(None, resource, None, None)),
        [ns, name] if ns == "namespaces" => Some(build(None, "namespaces", Some(name), None)),
        [ns, name, sub] if ns == "namespaces" && (sub == "status" || sub == "finalize") => {
            Some(build(None, "namespaces", Some(name), Some(sub)))
        }
        [ns, namespace, resource, tail @ ..] if ns == "namespaces" && tail.len() <= 2 => {
            Some(build(Some(namespace), resource, tail.first(), tail.get(1)))
        }
        [resource, name] => Some(build(None, resource, Some(name), None)),
        [resource, name, sub] => Some(build(None, resource, Some(name), Some(sub))),
        _ => None,
    };
    target.filter(|target| !is_watch || target.subresource.is_none())
}

/// A verb of requests for resources. RBAC knows others beside these (`bind`, `impersonate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads an object.
    Get,
    /// Reads objects.
    List,
    /// Follows changes.
    Watch,
    /// Creates an object.
    Create,
    /// Replaces an object.
    Update,
    /// Changes an object.
    Patch,
    /// Deletes an object.
    Delete,
    /// Deletes objects.
    DeleteCollection,
}

impl Verb {
    /// Its name in RBAC.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The verb that RBAC judges.
///
/// # Errors
/// 405 for a method that no resource has.
pub fn verb(method: &Method, target: &Target, watch: bool) -> Result<Verb, Refusal> {
    let named = target.name.is_some();
    match *method {
        Method::GET | Method::HEAD if target.is_watch => Ok(Verb::Watch),
        _ if target.is_watch => Err(Refusal::method_not_allowed()),
        Method::GET | Method::HEAD if named => Ok(Verb::Get),
        Method::GET | Method::HEAD if watch => Ok(Verb::Watch),
        Method::GET | Method::HEAD => Ok(Verb::List),
        Method::POST => Ok(Verb::Create),
        Method::PUT => Ok(Verb::Update),
        Method::PATCH => Ok(Verb::Patch),
        Method::DELETE if named => Ok(Verb::Delete),
        Method::DELETE => Ok(Verb::DeleteCollection),
        _ => Err(Refusal::method_not_allowed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        type Row = (
            &'static str,
            Option<(
                &'static str,
                &'static str,
                Option<&'static str>,
                Option<&'static str>,
                Option<&'static str>,
            )>,
        );
        let cases: &[Row] = &[
            ("/api/v1/pods", Some(("", "pods", None, None, None))),
            ("/api/v1/namespaces", Some(("", "namespaces", None, None, None))),
            ("/api/v1/namespaces/a", Some(("", "namespaces", None, Some("a"), None))),
            // Not a Namespace: cluster-scoped resources have no path below a namespace.
            ("/api/v1/namespaces/a/namespaces/b", Some(("", "namespaces", Some("a"), Some("b"), None))),
            ("/api/v1/namespaces/a/pods", Some(("", "pods", Some("a"), None, None))),
            ("/api/v1/namespaces/a/pods/b/log", Some(("", "pods", Some("a"), Some("b"), Some("log")))),
            ("/api/v1/namespaces/a/finalize", Some(("", "namespaces", None, Some("a"), Some("finalize")))),
            (
                "/apis/apps/v1/namespaces/a/deployments/b",
                Some(("apps", "deployments", Some("a"), Some("b"), None)),
            ),
            ("/api/v1/nodes/n/status", Some(("", "nodes", None, Some("n"), Some("status")))),
            ("/api/v1/namespaces/a/pods/b/c/d", None),
            ("/api/v1/namespaces//pods", None),
            ("/api/v1//pods", None),
            ("/api/v1/pods/%00", Some(("", "pods", None, Some("\0"), None))),
            ("/api/v1/watch/namespaces/a/pods/b/log", None),
            ("/healthz", None),
        ];
        for (path, expected) in cases {
            let found = target(path);
            let seen = found.as_ref().map(|t| {
                (&*t.group, &*t.resource, t.namespace.as_deref(), t.name.as_deref(), t.subresource.as_deref())
            });
            assert_eq!(seen, *expected, "{path}");
        }
        for (path, same) in [
            ("/api/v1/watch/pods", "/api/v1/pods"),
            ("/api/v1/watch/namespaces/a", "/api/v1/namespaces/a"),
            ("/api/v1/watch/namespaces/a/pods/b", "/api/v1/namespaces/a/pods/b"),
            ("/apis/apps/v1/watch/namespaces/a/deployments", "/apis/apps/v1/namespaces/a/deployments"),
        ] {
            let (legacy, plain) = (target(path).unwrap(), target(same).unwrap());
            assert_eq!(legacy, Target { is_watch: true, ..plain }, "{path}");
            assert_eq!(verb(&Method::GET, &legacy, false).unwrap(), Verb::Watch);
            for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                assert_eq!(verb(&method, &legacy, true).unwrap_err().code, 405, "{method} {path}");
            }
        }
    }
}
