// SPDX-License-Identifier: Apache-2.0
//! Sets as they are fetched and kept, by a clock of the test's own; and fetches from servers that misbehave.

use meltemi_runtime::drain;
use meltemi_testkit::issuer::Issuer;
use rustls::RootCertStore;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn uri(number: usize) -> Source {
    Source::Keys(format!("http://issuer-{number}/keys").into())
}

fn wanted(count: usize) -> BTreeMap<Source, Option<Duration>> {
    (0..count).map(|number| (uri(number), None)).collect()
}

fn failed() -> Result<String, FetchError> {
    Err(FetchError::Timeout(TIMEOUT))
}

#[tokio::test(start_paused = true)]
async fn a_set_is_refreshed_and_kept_for_a_day_and_then_gone() {
    let keys = Keys::default();
    let mut changes = keys.follow_changes();
    keys.want_sets(wanted(1));
    let now = Instant::now();
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    let due = |when: Instant| keys.take_due(when, FETCHES).0.len();
    assert_eq!(due(now), 1);
    assert_eq!(due(at(1)), 0, "one fetch at a time");
    keys.take_outcome(&uri(0), Ok("{}".to_owned()), now);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!((due(at(1199)), due(at(1200))), (0, 1));
    // The same set again is no change.
    keys.take_outcome(&uri(0), Ok("{}".to_owned()), at(1200));
    assert!(!changes.has_changed().unwrap());
    // From now on nothing can be fetched: ever longer pauses, and the keys of before.
    let (mut time, mut attempts) = (2400, 0);
    while time < 1200 + 24 * 3600 {
        assert_eq!(due(at(time)), 1, "{time}");
        keys.take_outcome(&uri(0), failed(), at(time));
        let found = keys.find_set(&uri(0));
        assert!(found.keys.is_some() && found.fault.is_some_and(|f| f.contains("no answer")), "{time}");
        time += (1 << attempts.min(9)).min(300);
        attempts += 1;
    }
    assert_eq!(due(at(time)), 1);
    keys.take_outcome(&uri(0), failed(), at(time));
    assert_eq!(keys.find_set(&uri(0)).keys, None, "fails closed");
    keys.take_outcome(&uri(0), Ok("{}".to_owned()), at(time + 300));
    assert_eq!(keys.find_set(&uri(0)), Found { keys: Some("{}".into()), fault: None });
    // What nobody needs is forgotten, and what comes of it, too.
    keys.want_sets(BTreeMap::new());
    keys.take_outcome(&uri(0), Ok("{}".to_owned()), at(time + 301));
    assert_eq!(keys.find_set(&uri(0)), Found::default());
}

#[test]
fn sets_and_fetches_are_bounded() {
    let keys = Keys::default();
    keys.want_sets(wanted(SETS + 5));
    let count = (0..SETS + 5).filter(|number| keys.find_set(&uri(*number)).fault.is_some()).count();
    assert_eq!(count, 5);
    let later = Instant::now() + Duration::from_secs(1);
    assert_eq!(keys.take_due(later, FETCHES).0.len(), FETCHES);
    keys.want_sets(wanted(3));
    assert!((0..3).all(|number| keys.find_set(&uri(number)).fault.is_none()));
}

/// A server on loopback that answers everybody with these bytes; with none it says nothing.
async fn server(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "a test has no owner for tasks but itself")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                // A handshake of TLS is closed at once.
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) || head[0] == 0x16 {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            if head.starts_with('\u{16}') {
                continue;
            }
            match answer(head.split(' ').nth(1).unwrap_or_default()) {
                Some(bytes) => {
                    let _ = stream.write_all(&bytes).await;
                }
                None => std::mem::forget(stream),
            }
        }
    });
    port
}

fn response(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn fetcher(allowed: &str) -> Fetcher {
    let allowed = (!allowed.is_empty()).then(|| allowed.parse().unwrap());
    Fetcher::new(Permitted::beside(allowed.into_iter().collect()), RootCertStore::empty())
}

#[tokio::test]
async fn only_a_whole_set_from_a_permitted_address_is_taken() {
    let issuer = Issuer::new("ES256");
    let mut published = issuer.key();
    published["d"] = json!("c2VjcmV0");
    let set = json!({"keys": [published]}).to_string();
    let secret = Issuer::secret("HS256", b"secret").keys();
    let port = server(move |path| match path {
        "/keys?a=b" => Some(response("200 OK", &set)),
        "/secret" => Some(response("200 OK", &secret)),
        "/moved" => Some(b"HTTP/1.1 302 Found\r\nlocation: /keys?a=b\r\ncontent-length: 0\r\n\r\n".to_vec()),
        "/missing" => Some(response("404 Not Found", &set)),
        "/empty" => Some(response("200 OK", "{}")),
        "/html" => Some(response("200 OK", "<html>")),
        "/half" => Some(format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{set}").into_bytes()),
        "/huge" => Some(response("200 OK", &" ".repeat(meltemi_tokens::MAX_SET + 1))),
        "/endless" => {
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(40);
            Some(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}").into_bytes())
        }
        "/noise" => Some(b"SSH-2.0-x\r\n".to_vec()),
        "/nothing" => Some(Vec::new()),
        _ => None,
    })
    .await;
    let at = |path: &str| Source::Keys(format!("http://127.0.0.1:{port}{path}").into());
    let (open, closed) = (fetcher("127.0.0.0/8"), fetcher(""));
    let limit = Duration::from_secs(20);
    let keys = open.fetch(&at("/keys?a=b"), limit).await.unwrap();
    assert!(keys.contains(&issuer.id()) && !keys.contains("c2VjcmV0"), "{keys}");
    for (fetcher, source, expected) in [
        (&closed, at("/keys?a=b"), "loopback, link-local and metadata addresses are refused"),
        (&closed, Source::Keys(format!("http://localhost:{port}/keys").into()), "are refused"),
        (&closed, Source::Keys("http://169.254.169.254/latest/meta-data".into()), "are refused"),
        (&closed, Source::Keys("http://[::ffff:7f00:1]/".into()), "are refused"),
        // Numbers that some resolvers read as 127.0.0.1.
        (&closed, Source::Keys("http://2130706433/".into()), "are refused"),
        (&closed, Source::Keys("http://0x7f.1/".into()), "are refused"),
        (&open, Source::Keys("http://user:word@127.0.0.1/".into()), "is no address of keys"),
        (&open, Source::Keys("file:///etc/passwd".into()), "is no address of keys"),
        (&open, Source::Issuer("testing@secure.istio.io".into()), "is no address of keys"),
        (&open, Source::Keys(format!("https://127.0.0.1:{port}/keys").into()), "cannot be reached"),
        (&open, at("/secret"), "doesn't have any valid public key"),
        (&open, at("/moved"), "302 Found: redirects are not followed"),
        (&open, at("/missing"), "answers 404 Not Found"),
        (&open, at("/empty"), "does not have [keys] field"),
        (&open, at("/html"), "invalid JSON"),
        (&open, at("/half"), "does not speak HTTP as it should"),
        (&open, at("/huge"), "more than 262144 bytes"),
        (&open, at("/endless"), "more than 262144 bytes"),
        (&open, at("/noise"), "does not speak HTTP as it should"),
        (&open, at("/nothing"), "does not speak HTTP as it should"),
    ] {
        let error = fetcher.fetch(&source, limit).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
        assert!(!error.contains("c2VjcmV0") && !error.contains("SSH"), "{error}");
    }
    let begun = std::time::Instant::now();
    let error = open.fetch(&at("/silent"), Duration::from_millis(300)).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 300ms") && begun.elapsed() < limit, "{error}");
}

#[tokio::test]
async fn an_issuer_says_where_its_keys_are() {
    let set = Issuer::new("EdDSA").keys();
    let port = Arc::new(std::sync::OnceLock::new());
    let own = port.clone();
    let listening = server(move |path| {
        let port: &u16 = own.get()?;
        let document = |uri: &str| Some(response("200 OK", &json!({ "jwks_uri": uri }).to_string()));
        match path {
            "/good/.well-known/openid-configuration" => document(&format!("http://127.0.0.1:{port}/keys")),
            "/file/.well-known/openid-configuration" => document("file:///etc/passwd"),
            "/meta/.well-known/openid-configuration" => document("http://169.254.169.254/keys"),
            "/none/.well-known/openid-configuration" => Some(response("200 OK", "{}")),
            "/keys" => Some(response("200 OK", &set)),
            _ => Some(response("404 Not Found", "")),
        }
    })
    .await;
    port.set(listening).unwrap();
    let open = fetcher("127.0.0.0/8");
    let limit = Duration::from_secs(20);
    let issuer = |path: &str| Source::Issuer(format!("http://127.0.0.1:{listening}{path}").into());
    for path in ["/good", "/good/"] {
        assert!(open.fetch(&issuer(path), limit).await.is_ok(), "{path}");
    }
    for (path, expected) in [
        ("/file", "no discovery document"),
        ("/none", "no discovery document"),
        ("/meta", "are refused"),
        ("/other", "404"),
    ] {
        let error = open.fetch(&issuer(path), limit).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{path}: {error}");
    }
}

#[tokio::test]
async fn the_task_fetches_what_is_wanted_and_says_so() {
    let set = Issuer::new("ES384").keys();
    let port = server(move |_| Some(response("200 OK", &set))).await;
    let (trigger, watch) = drain::channel();
    let (tasks, supervisor) = Tasks::new("test", watch);
    let keys = Keys::default();
    let mut changes = keys.follow_changes();
    start(&tasks, keys.clone(), fetcher("127.0.0.0/8"));
    let source = Source::Keys(format!("http://127.0.0.1:{port}/").into());
    keys.want_sets([(source.clone(), None)].into());
    tokio::time::timeout(Duration::from_secs(60), changes.changed()).await.unwrap().unwrap();
    assert!(keys.find_set(&source).keys.is_some());
    drop(tasks);
    let ((), ended) = tokio::join!(trigger.start(Duration::from_secs(60)), supervisor.run());
    ended.unwrap();
}
