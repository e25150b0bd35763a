// SPDX-License-Identifier: Apache-2.0
//! Istio's vectors for normalisation and templates.

use super::{Normalization, canonical_escapes, has_overlong, normalize, readings};
use crate::http::{canonical_host, template_matches};

#[test]
fn the_four_modes() {
    use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
    // input, NONE, BASE, MERGE_SLASHES, DECODE_AND_MERGE_SLASHES
    let cases = [
        ["/app#foo", "/app", "/app", "/app", "/app"],
        ["/app/../admin", "/app/../admin", "/admin", "/admin", "/admin"],
        ["/app//", "/app//", "/app//", "/app/", "/app/"],
        ["/app/%2f", "/app/%2f", "/app/%2f", "/app/%2f", "/app/"],
        ["/app%2f/", "/app%2f/", "/app%2f/", "/app%2f/", "/app/"],
        ["/xyz%30..//abc", "/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"],
        ["/app/%2E./admin", "/app/%2E./admin", "/admin", "/admin", "/admin"],
        ["/app\\admin", "/app\\admin", "/app/admin", "/app/admin", "/app/admin"],
        ["/app/\\/\\/\\admin", "/app/\\/\\/\\admin", "/app//////admin", "/app/admin", "/app/admin"],
        [
            "/%2Fapp%5cadmin%5Cabc",
            "/%2Fapp%5cadmin%5Cabc",
            "/%2Fapp%5cadmin%5Cabc",
            "/%2Fapp%5cadmin%5Cabc",
            "/app/admin/abc",
        ],
        [
            "/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc",
            "/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc",
            "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
            "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
            "/app/admin/abc",
        ],
        ["/app//../admin", "/app//../admin", "/app/admin", "/app/admin", "/app/admin"],
        ["/app//../../admin", "/app//../../admin", "/admin", "/admin", "/admin"],
    ];
    for [input, none, base, merge, decode] in cases {
        for (mode, expected) in
            [(None, none), (Base, base), (MergeSlashes, merge), (DecodeAndMergeSlashes, decode)]
        {
            assert_eq!(normalize(input, mode).unwrap(), expected, "{input} {mode:?}");
        }
    }
    let left_alone = [
        "/0x2e0x2e/admin",
        "/%252e%252e/admin",
        "/%c0%ae%c0%ae/admin",
        "/.../admin",
        "/..;/admin",
        "/admin;a=b",
        "/Admin",
    ];
    for path in left_alone {
        assert_eq!(normalize(path, DecodeAndMergeSlashes).unwrap(), path);
    }
    assert!(normalize("/a%00", Base).is_err());
    assert!(normalize("*", Base).is_err());
}

#[test]
fn templates() {
    let templates = ["/allow/admin/{**}", "/foo/{*}/bar/{**}", "/store/{**}/cart"];
    let allowed = [
        "/allow/admin/",
        "/allow/admin/temp",
        "/allow/admin/temp.txt",
        "/allow/admin/foo/temp.txt",
        "/foo/buzz/bar/bat.txt",
        "/foo/buzz/bar/bat/fuzz.txt",
        "/foo/buzz/bar/bat",
        "/store//cart",
        "/store/foo/cart",
        "/store/foo/bar/cart",
    ];
    let denied =
        ["/allow/admin", "/allow/user/", "/allow", "/foo/bar/bat.txt", "/foo//bar/bat.txt", "/store/cart"];
    for path in allowed {
        assert!(templates.iter().any(|t| template_matches(t, path)), "{path}");
    }
    for path in denied {
        assert!(!templates.iter().any(|t| template_matches(t, path)), "{path}");
    }
}

#[test]
fn other_readings_of_a_path() {
    let cases = [
        ("//admin", "/admin"),
        ("/%2Fadmin", "/admin"),
        ("/x%2f..%2fadmin", "/admin"),
        ("/admin;jsessionid=1", "/admin"),
        ("/public/..;/admin", "/admin"),
        ("/v1/users%3Adelete", "/v1/users:delete"),
        ("/caf%c3%a9", "/caf\u{e9}"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/caf%c3%a9", "/caf%c3%a9"),
        ("//x/admin", "/admin"),
        ("/\\x/admin", "/admin"),
        ("///x//admin/y", "/admin/y"),
        ("//x", "/"),
        ("/a%3Bx/b", "/a/b"),
        ("/a/%25/b", "/a/%/b"),
    ];
    for (path, reading) in cases {
        let normalised = normalize(path, Normalization::Base).unwrap();
        assert!(readings(&normalised).iter().any(|r| r == reading), "{path}: {:?}", readings(&normalised));
    }
    assert_eq!(readings("/plain/path"), ["/plain/path"]);
}

#[test]
fn one_notation_of_escapes_and_hosts() {
    for (path, expected) in [
        ("/a%2fb%c3", "/a%2Fb%C3"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%zf%f", "/a%zf%f"),
        ("/a%%2f", "/a%%2F"),
        ("/abc", "/abc"),
    ] {
        assert_eq!(canonical_escapes(path), expected);
        assert_eq!(readings(path)[0], expected);
    }
    for (host, expected) in
        [("a.:80", "a"), ("a:81", "a:81"), ("[::1]:80", "[::1]"), ("a.b", "a.b"), ("a:8080", "a:8080")]
    {
        assert_eq!(canonical_host(host), expected);
    }
}

#[test]
fn overlong_characters() {
    for path in ["/%c0%ae", "/%C1%81", "/%e0%9f%bf", "/%f0%8f%bf%bf", "/a/%c0%af../x"] {
        assert!(has_overlong(path), "{path}");
    }
    for path in ["/", "/%c0%2e", "/%c0x", "/%c3%a9", "/%e0%a0%80", "/%f0%90%80%80", "/%ff%fe", "/%25c0%ae"] {
        assert!(!has_overlong(path), "{path}");
    }
}
