// SPDX-License-Identifier: Apache-2.0
//! Custom resources: served at once, checked by their schema and rules, shown in their columns.

use super::server::Server;

pub(crate) const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Mode, type: string, jsonPath: .spec.mode, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            x-kubernetes-validations: [{rule: 'self.min <= self.size', message: 'min must not exceed size'}]
            properties:
              size: {type: integer, minimum: 0, maximum: 10}
              min: {type: integer, default: 0}
              mode: {type: string, enum: [a, b], default: a}
              title:
                type: string
                pattern: '^x+$'
                x-kubernetes-validations: [{rule: 'self == oldSelf', message: 'title is immutable'}]
              either:
                type: object
                oneOf: [{required: [left]}, {required: [right]}]
                properties: {left: {type: string}, right: {type: string}}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [id]
                items: {type: object, required: [id], properties: {id: {type: integer}, v: {type: string}}}
          status:
            type: object
            properties:
              size: {type: integer}
              conditions:
                type: array
                items: {type: object, properties: {type: {type: string}, status: {type: string}}}
  - name: v1beta1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

fn widget(spec: &str) -> String {
    format!("apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {spec}\n")
}

#[test]
fn an_object_is_checked_by_its_schema_and_its_rules() {
    let server = Server::start();
    server.apply(WIDGETS);
    // Nothing is waited for: the definition is served by the time it is acknowledged.
    server.apply(&widget("{size: 3, title: xx, free: {any: {thing: [1]}}}"));
    assert_eq!(server.value("widget/w", ".spec.mode"), "a");
    let cases = [
        ("{size: 3, sise: 4}", "strict decoding error: unknown field \"spec.sise\""),
        ("{size: 30}", "spec.size in body should be less than or equal to 10"),
        ("{size: 3, min: 5}", "spec: Invalid value: \"object\": min must not exceed size"),
        ("{size: 3, mode: c}", "spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""),
        ("{size: null, min: 0}", "spec.size: Required value"),
        ("{size: abc}", "spec.size in body must be of type integer"),
        ("{size: 3, title: yyy}", "spec.title in body should match '^x+$'"),
        ("{size: 3, title: xxx}", "title is immutable"),
        ("{size: 3, either: {}}", "must validate one and only one schema (oneOf)"),
        ("{size: 3, parts: [{id: 1}, {id: 1}]}", "spec.parts[1]: Duplicate value"),
    ];
    for (spec, expected) in cases {
        // Even a client that asks for no validation gets it.
        let said = server.refused(&["apply", "-f", "-", "--validate=false"], &widget(spec));
        assert!(said.contains(expected), "{spec}: {said}");
        server.refused(&["apply", "-f", "-"], &widget(spec));
    }
    let said = server.refused(&["apply", "-f", "-"], &WIDGETS.replace("schema:\n", "shema:\n"));
    assert!(said.contains("shema\""), "{said}");
    for (right, wrong, expected) in [
        ("'self == oldSelf'", "'self =='", "compilation failed"),
        ("'^x+$'", "'(x'", "must be a valid regular expression"),
        ("storage: true", "storage: false", "exactly one version marked as storage version"),
        ("name: widgets.example.com", "name: gadgets.example.com", "must be spec.names.plural"),
        ("scope: Namespaced", "scope: Cluster", "spec.scope: Invalid value: \"Cluster\": field is immutable"),
    ] {
        let said = server.refused(&["apply", "-f", "-"], &WIDGETS.replace(right, wrong));
        assert!(said.contains(expected), "{wrong}: {said}");
    }
}

#[test]
fn it_is_shown_scaled_explained_and_its_status_is_apart() {
    let server = Server::start();
    server.apply(WIDGETS);
    server.kubectl(&["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=5s"]);
    server.apply(&widget("{size: 3}"));
    server.kubectl(&["scale", "widget", "w", "--replicas=4"]);
    server.kubectl(&[
        "patch",
        "widget",
        "w",
        "--type=merge",
        "-p",
        r#"{"status":{"size":9},"spec":{"min":1}}"#,
    ]);
    assert_eq!(server.value("widget/w", ".status"), "", "the status is changed through its subresource only");
    let status = r#"{"status":{"size":4,"conditions":[{"type":"Ready","status":"True"}]},"spec":{"size":9}}"#;
    let path = "/apis/example.com/v1/namespaces/default/widgets/w/status";
    patch_status(&server, path, status);
    assert_eq!(server.value("widget/w", ".spec.size"), "4");
    assert_eq!(server.value("widget/w", ".metadata.generation"), "3");
    server.kubectl(&["wait", "--for=condition=Ready", "widget/w", "--timeout=5s"]);
    let rows = server.kubectl(&["get", "wd", "-o", "wide"]);
    let lines: Vec<Vec<&str>> = rows.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines, [["NAME", "SIZE", "READY", "MODE"], ["w", "4", "True", "a"]]);
    assert!(server.kubectl(&["explain", "widget.spec"]).contains("parts"));
    assert!(server.kubectl(&["get", "all"]).contains("widget.example.com/w"));
    assert_eq!(server.value("widgets.v1beta1.example.com/w", ".apiVersion"), "example.com/v1beta1");
    server.kubectl(&["delete", "crd", "widgets.example.com"]);
    server.refused(&["get", "widgets"], "");
    server.apply(WIDGETS);
    assert_eq!(server.kubectl(&["get", "widgets", "-o", "name"]), "", "objects go with their definition");
}

#[test]
fn keyed_lists_are_applied_element_by_element() {
    let server = Server::start();
    server.apply(WIDGETS);
    let apply = |manager: &'static str, spec: &str| {
        server.apply_with(&["--server-side", "--field-manager", manager], &widget(spec));
    };
    apply("one", "{size: 4, parts: [{id: 1, v: a}, {id: 2, v: b}]}");
    apply("two", "{size: 4, parts: [{id: 3, v: c}]}");
    let parts = || server.value("widget/w", ".spec.parts[*].id");
    assert_eq!(parts(), "1 2 3");
    apply("one", "{size: 4, parts: [{id: 2, v: b}]}");
    assert_eq!(parts(), "2 3");
    let said = server.refused(
        &["apply", "-f", "-", "--server-side", "--field-manager=two"],
        &widget("{size: 4, parts: [{id: 2, v: z}]}"),
    );
    assert!(said.contains("conflict with \"one\": .spec.parts[id=2].v"), "{said}");
}

/// Outside of the strict groups Kubernetes' rules hold: operators write fields that their definitions do not have.
#[test]
fn in_other_groups_unknown_fields_are_pruned_unless_the_client_is_strict() {
    let server = Server::start();
    let widgets = WIDGETS.replace("example.com", "other.example.org");
    server.apply(&widgets);
    let widget = |spec: &str| widget(spec).replace("example.com", "other.example.org");
    let said = server.apply_with(&["--validate=false"], &widget("{size: 3, sise: 4}"));
    assert!(said.contains("created"), "{said}");
    assert_eq!(server.value("widgets.other.example.org/w", ".spec.sise"), "", "pruned");
    assert_eq!(server.value("widgets.other.example.org/w", ".spec.size"), "3");
    let path = "/apis/other.example.org/v1/namespaces/default/widgets?fieldValidation=Strict";
    let said = server.refused(&["create", "--raw", path, "-f", "-"], &widget_json("other.example.org"));
    assert!(said.contains("unknown field"), "{said}");
}

fn widget_json(group: &str) -> String {
    serde_json::json!({"apiVersion": format!("{group}/v1"), "kind": "Widget", "metadata": {"name": "strict"},
        "spec": {"size": 3, "sise": 4}})
    .to_string()
}

#[test]
fn a_definition_that_is_not_structural_is_refused() {
    let server = Server::start();
    // Rules that end a reader that goes down into them.
    let deep = format!("{}self.min <= self.size{}", "(".repeat(3_000), ")".repeat(3_000));
    for (right, wrong, expected) in [
        (
            "size: {type: integer,",
            "list: {type: array}\n              size: {type: integer,",
            "items: Required value",
        ),
        ("min: {type: integer, default: 0}", "min: {default: 0}", "type: Required value: must not be empty"),
        ("self.min <= self.size", deep.as_str(), "nested too deeply"),
    ] {
        assert!(WIDGETS.contains(right), "{right}");
        let said = server.refused(&["create", "-f", "-", "--validate=false"], &WIDGETS.replace(right, wrong));
        assert!(said.contains(expected), "{wrong}: {said}");
    }
    server.apply(WIDGETS);
    let rows = server.kubectl(&["get", "apiservices"]);
    assert!(rows.contains("v1.example.com") && rows.contains("v1.apps"), "{rows}");
    server.kubectl(&["delete", "crd", "widgets.example.com"]);
    let rows = server.kubectl(&["get", "apiservices"]);
    assert!(!rows.contains("v1.example.com") && rows.contains("v1.apps"), "{rows}");
}

#[test]
fn an_object_gets_the_defaults_that_its_definition_got_later() {
    let server = Server::start();
    let (now, later) = ("min: {type: integer}", "min: {type: integer, default: 0}");
    server.apply(
        &WIDGETS
            .replace(later, now)
            .replace("self.min <= self.size", "!has(self.min) || self.min <= self.size"),
    );
    server.apply(&widget("{size: 3}"));
    assert_eq!(server.value("widget/w", ".spec.min"), "");
    server.apply(WIDGETS);
    assert_eq!(server.value("widget/w", ".spec.min"), "0");
    let list = server.kubectl(&["get", "widgets", "-o", "jsonpath={.items[*].spec.min}"]);
    assert_eq!(list, "0");
}

/// Older kubectls know no `--subresource`.
#[track_caller]
fn patch_status(server: &Server, path: &str, patch: &str) {
    let mut object: serde_json::Value =
        serde_json::from_str(&server.kubectl(&["get", "--raw", path])).unwrap();
    let patch: serde_json::Value = serde_json::from_str(patch).unwrap();
    for key in ["status", "spec"] {
        object[key] = patch[key].clone();
    }
    server.kubectl_with(&["replace", "--raw", path, "-f", "-"], &object.to_string());
}
