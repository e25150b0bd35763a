// SPDX-License-Identifier: Apache-2.0
//! The walkthrough as a table: Istio's task "Enforce authorization policies", then waypoints for one Service
//! (`kagenti-system`), with what must be seen at each step.

use std::time::Duration;

use super::shell::Step;

const SHORT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(90);

const L4_POLICY: &str = r#"kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: productpage-ztunnel
  namespace: default
spec:
  selector:
    matchLabels:
      app: productpage
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/default/sa/bookinfo-gateway-istio
EOF"#;

const L7_POLICY: &str = r#"kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: productpage-waypoint
  namespace: default
spec:
  targetRefs:
  - kind: Service
    group: ""
    name: productpage
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/default/sa/curl
    to:
    - operation:
        methods: ["GET"]
EOF"#;

const L4_POLICY_UPDATED: &str = r#"kubectl apply -f - <<EOF
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: productpage-ztunnel
  namespace: default
spec:
  selector:
    matchLabels:
      app: productpage
  action: ALLOW
  rules:
  - from:
    - source:
        principals:
        - cluster.local/ns/default/sa/bookinfo-gateway-istio
        - cluster.local/ns/default/sa/waypoint
EOF"#;

/// Pods of the application: running, ready, enrolled.
pub fn application() -> Vec<Step> {
    vec![
        Step::new(
            "Bookinfo: four services, six Deployments",
            "kubectl apply -f samples/bookinfo/bookinfo.yaml",
            ["deployment.apps/productpage-v1 created", "service/reviews created"],
        ),
        Step::new(
            "An ingress gateway: the controller makes its Deployment, Service and ServiceAccount",
            "kubectl apply -f samples/bookinfo/gateway.yaml",
            ["bookinfo-gateway created"],
        ),
        Step::new(
            "Another client",
            "kubectl apply -f samples/curl/curl.yaml",
            ["deployment.apps/curl created"],
        ),
        Step::new(
            "Everything is rolled out",
            "for d in productpage-v1 details-v1 ratings-v1 reviews-v1 reviews-v2 reviews-v3 curl \
             bookinfo-gateway-istio; do kubectl rollout status deploy/$d --timeout=90s || exit 1; done",
            ["deployment \"productpage-v1\" successfully rolled out"],
        )
        .within(LONG),
        Step::new("The Pods", "kubectl get pods -o wide", ["Running", "1/1", "node-1", "node-2"])
            .hides(["0/1", "Error", "CrashLoopBackOff"])
            .within(SHORT),
        Step::new(
            "Into the mesh, without a restart",
            "kubectl label namespace default istio.io/dataplane-mode=ambient",
            ["namespace/default labeled"],
        ),
        Step::new(
            "Every Pod of the application is enrolled",
            "kubectl get pods -l 'app in (productpage,details,ratings,reviews,curl)' -o jsonpath='{range \
             .items[*]}{.metadata.name} {.metadata.annotations.ambient\\.istio\\.io/redirection}{\"\\n\"}{end}'; \
             [ $(kubectl get pods -o yaml | grep -c 'ambient.istio.io/redirection: enabled') -ge 7 ]",
            ["productpage-v1", "enabled"],
        )
        .within(LONG),
    ]
}

/// The page through the gateway, on the local port that was forwarded.
pub fn page(say: &'static str, port: u16) -> Step {
    Step::new(
        say,
        format!("curl -s http://localhost:{port}/productpage"),
        ["<title>Simple Bookstore App</title>", "Book Details", "Book Reviews"],
    )
    .hides(["currently unavailable"])
    .within(Duration::from_secs(20))
}

/// Layer 4: only the gateway reaches productpage.
pub fn layer4() -> Vec<Step> {
    vec![
        Step::new(
            "Without a policy, curl reaches productpage",
            "kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage | grep -o \"<title>.*</title>\"",
            ["<title>Simple Bookstore App</title>"],
        )
        .within(SHORT),
        Step::new(
            "A layer 4 policy: only the gateway's identity",
            L4_POLICY,
            ["authorizationpolicy.security.istio.io/productpage-ztunnel created"],
        ),
        Step::new(
            "The policy is in force at every proxy that needs it",
            "kubectl wait --for=condition=meltemi.dev/Enforced authorizationpolicy/productpage-ztunnel --timeout=60s",
            ["condition met"],
        ),
        Step::new(
            "curl has another identity: its connection is reset",
            "kubectl exec deploy/curl -- curl -s \"http://productpage:9080/productpage\"",
            ["command terminated with exit code 56"],
        )
        .exits(56),
        Step::new(
            "Readiness probes go on passing",
            "kubectl wait --for=condition=Ready pod -l app=productpage --timeout=20s",
            ["condition met"],
        ),
        Step::new(
            "The node proxy says why",
            "kubectl logs -n istio-system -l app=ztunnel --tail=-1 | grep productpage-ztunnel | tail -1",
            ["default/productpage-ztunnel", "spiffe://cluster.local/ns/default/sa/curl"],
        )
        .within(SHORT),
        Step::new(
            "And so does explain",
            "meltemi authz explain --from default/curl --to productpage --port 9080",
            ["DENY", "productpage-ztunnel"],
        )
        .exits(1),
    ]
}

/// Layer 7: a waypoint, and a policy on methods.
pub fn layer7() -> Vec<Step> {
    vec![
        Step::new(
            "A waypoint for the namespace",
            "istioctl waypoint apply --enroll-namespace --wait",
            ["waypoint default/waypoint applied", "namespace default labeled with \"istio.io/use-waypoint: waypoint\""],
        ),
        Step::new(
            "It is programmed",
            "kubectl get gtw waypoint",
            ["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "istio-waypoint", "True"],
        )
        .within(SHORT),
        Step::new(
            "A layer 7 policy: curl may GET",
            L7_POLICY,
            ["authorizationpolicy.security.istio.io/productpage-waypoint created"],
        ),
        Step::new(
            "It is in force at the waypoint",
            "kubectl wait --for=condition=meltemi.dev/Enforced authorizationpolicy/productpage-waypoint --timeout=60s",
            ["condition met"],
        ),
        Step::new(
            "The layer 4 policy does not know the waypoint yet: productpage's node refuses it",
            "kubectl exec deploy/curl -- curl -s -o /dev/null -w '%{http_code}\\n' \
             http://productpage:9080/productpage",
            ["503"],
        )
        .within(SHORT),
        Step::new(
            "The layer 4 policy admits the waypoint",
            L4_POLICY_UPDATED,
            ["authorizationpolicy.security.istio.io/productpage-ztunnel configured"],
        ),
        Step::new(
            "This works: curl may GET",
            "kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage | grep -o \"<title>.*</title>\"",
            ["<title>Simple Bookstore App</title>"],
        )
        .within(SHORT),
        Step::new(
            "This fails with an RBAC error: it is not a GET",
            "kubectl exec deploy/curl -- curl -s \"http://productpage:9080/productpage\" -X DELETE",
            ["RBAC: access denied"],
        ),
        Step::new(
            "This fails with an RBAC error: reviews-v1 has another identity",
            "kubectl exec deploy/reviews-v1 -- curl -s http://productpage:9080/productpage",
            ["RBAC: access denied"],
        ),
        Step::new(
            "Explain, for the same two requests",
            "meltemi authz explain --from default/curl --to productpage --method GET --path /productpage; \
             meltemi authz explain --from default/curl --to productpage --method DELETE --path /productpage",
            ["ALLOW", "DENY", "productpage-waypoint"],
        )
        .exits(1),
    ]
}

/// The second walkthrough: a waypoint for one Service, several rules with methods and paths.
pub fn kagenti() -> Vec<Step> {
    vec![
        Step::new(
            "A namespace with an API and its clients",
            "kubectl apply -f samples/kagenti/ && kubectl -n kagenti-system wait --for=condition=Programmed \
             gateway/mlflow-waypoint --timeout=90s && kubectl -n kagenti-system wait \
             --for=condition=Available deployments --all --timeout=90s",
            ["condition met"],
        )
        .within(LONG),
        Step::new(
            "The policies are in force",
            "kubectl -n kagenti-system wait --for=condition=meltemi.dev/Enforced authorizationpolicy --all \
             --timeout=60s",
            ["condition met"],
        ),
        status("otel-collector may POST traces", "otel-collector", "POST", "/v1/traces", "200"),
        status("but not read", "otel-collector", "GET", "/api/experiments", "403"),
        status("kagenti-ui may GET everything", "kagenti-ui", "GET", "/api/experiments", "200"),
        status("but not DELETE", "kagenti-ui", "DELETE", "/api/experiments", "403"),
        Step::new(
            "Troubleshooting: the waypoint's Pod",
            "kubectl get pods -n kagenti-system -l gateway.networking.k8s.io/gateway-name=mlflow-waypoint",
            ["mlflow-waypoint-", "1/1", "Running"],
        ),
        Step::new(
            "Troubleshooting: the Service's label",
            "kubectl get svc mlflow -n kagenti-system -o yaml | grep waypoint",
            ["istio.io/use-waypoint: mlflow-waypoint"],
        ),
        Step::new(
            "Troubleshooting: the identity of a Pod",
            "istioctl proxy-config secret $(kubectl get pods -n kagenti-system -l app=otel-collector -o \
             jsonpath='{.items[0].metadata.name}') -n kagenti-system",
            ["spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"],
        ),
        Step::new(
            "Troubleshooting: ambient mode",
            "kubectl get namespace kagenti-system -o yaml | grep ambient",
            ["istio.io/dataplane-mode: ambient"],
        ),
        Step::new(
            "Troubleshooting: a line for each connection",
            "kubectl logs -n istio-system -l app=ztunnel --tail=-1 | grep 'connection complete' | grep kagenti-system | \
             tail -2",
            ["src.identity=\"spiffe://cluster.local/ns/kagenti-system/sa/"],
        )
        .within(SHORT),
    ]
}

fn status(say: &'static str, from: &str, method: &str, path: &str, code: &'static str) -> Step {
    Step::new(
        say,
        format!(
            "kubectl exec -n kagenti-system deploy/{from} -- curl -s -o /dev/null -w '%{{http_code}}\\n' \
             -X {method} http://mlflow:5000{path}"
        ),
        [code],
    )
    .within(SHORT)
}
