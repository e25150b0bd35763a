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
        Step {
            say: "Bookinfo: four services, six Deployments",
            run: "kubectl apply -f samples/bookinfo/bookinfo.yaml".into(),
            shows: vec!["deployment.apps/productpage-v1 created", "service/reviews created"],
            ..Step::default()
        },
        Step {
            say: "An ingress gateway: the controller makes its Deployment, Service and ServiceAccount",
            run: "kubectl apply -f samples/bookinfo/gateway.yaml".into(),
            shows: vec!["bookinfo-gateway created"],
            ..Step::default()
        },
        Step {
            say: "Another client",
            run: "kubectl apply -f samples/curl/curl.yaml".into(),
            shows: vec!["deployment.apps/curl created"],
            ..Step::default()
        },
        Step {
            say: "Everything is rolled out",
            run: "for d in productpage-v1 details-v1 ratings-v1 reviews-v1 reviews-v2 reviews-v3 curl bookinfo-gateway-istio; do \
                  kubectl rollout status deploy/$d --timeout=90s || exit 1; done"
                .into(),
            shows: vec!["deployment \"productpage-v1\" successfully rolled out"],
            within: LONG,
            ..Step::default()
        },
        Step {
            say: "The Pods",
            run: "kubectl get pods -o wide".into(),
            shows: vec!["Running", "1/1", "node-1", "node-2"],
            hides: vec!["0/1", "Error", "CrashLoopBackOff"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "Into the mesh, without a restart",
            run: "kubectl label namespace default istio.io/dataplane-mode=ambient".into(),
            shows: vec!["namespace/default labeled"],
            ..Step::default()
        },
        Step {
            say: "Every Pod of the application is enrolled",
            run: "kubectl get pods -l 'app in (productpage,details,ratings,reviews,curl)' -o jsonpath='{range .items[*]}\
                  {.metadata.name} {.metadata.annotations.ambient\\.istio\\.io/redirection}{\"\\n\"}{end}'; \
                  [ $(kubectl get pods -o yaml | grep -c 'ambient.istio.io/redirection: enabled') -ge 7 ]"
                .into(),
            shows: vec!["productpage-v1", "enabled"],
            within: LONG,
            ..Step::default()
        },
    ]
}

/// The page through the gateway, on the local port that was forwarded.
pub fn page(say: &'static str, port: u16) -> Step {
    Step {
        say,
        run: format!("curl -s http://localhost:{port}/productpage"),
        shows: vec!["<title>Simple Bookstore App</title>", "Book Details", "Book Reviews"],
        hides: vec!["currently unavailable"],
        within: Duration::from_secs(20),
        ..Step::default()
    }
}

/// Layer 4: only the gateway reaches productpage.
pub fn layer4() -> Vec<Step> {
    vec![
        Step {
            say: "Without a policy, curl reaches productpage",
            run: "kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage | grep -o \"<title>.*</title>\""
                .into(),
            shows: vec!["<title>Simple Bookstore App</title>"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "A layer 4 policy: only the gateway's identity",
            run: L4_POLICY.into(),
            shows: vec!["authorizationpolicy.security.istio.io/productpage-ztunnel created"],
            ..Step::default()
        },
        Step {
            say: "The policy is in force at every proxy that needs it",
            run: "kubectl wait --for=condition=meltemi.dev/Enforced authorizationpolicy/productpage-ztunnel --timeout=30s"
                .into(),
            shows: vec!["condition met"],
            ..Step::default()
        },
        Step {
            say: "curl has another identity: its connection is reset",
            run: "kubectl exec deploy/curl -- curl -s \"http://productpage:9080/productpage\"".into(),
            code: 56,
            shows: vec!["command terminated with exit code 56"],
            ..Step::default()
        },
        Step {
            say: "Readiness probes go on passing",
            run: "kubectl wait --for=condition=Ready pod -l app=productpage --timeout=20s".into(),
            shows: vec!["condition met"],
            ..Step::default()
        },
        Step {
            say: "The node proxy says why",
            run: "kubectl logs -n istio-system -l app=ztunnel --tail=-1 | grep productpage-ztunnel | tail -1".into(),
            shows: vec!["default/productpage-ztunnel", "spiffe://cluster.local/ns/default/sa/curl"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "And so does explain",
            run: "meltemi authz explain --from default/curl --to productpage --port 9080".into(),
            code: 1,
            shows: vec!["DENY", "productpage-ztunnel"],
            ..Step::default()
        },
    ]
}

/// Layer 7: a waypoint, and a policy on methods.
pub fn layer7() -> Vec<Step> {
    vec![
        Step {
            say: "A waypoint for the namespace",
            run: "istioctl waypoint apply --enroll-namespace --wait".into(),
            shows: vec![
                "waypoint default/waypoint applied",
                "namespace default labeled with \"istio.io/use-waypoint: waypoint\"",
            ],
            ..Step::default()
        },
        Step {
            say: "It is programmed",
            run: "kubectl get gtw waypoint".into(),
            shows: vec!["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "istio-waypoint", "True"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "A layer 7 policy: curl may GET",
            run: L7_POLICY.into(),
            shows: vec!["authorizationpolicy.security.istio.io/productpage-waypoint created"],
            ..Step::default()
        },
        Step {
            say: "It is in force at the waypoint",
            run: "kubectl wait --for=condition=meltemi.dev/Enforced authorizationpolicy/productpage-waypoint --timeout=30s"
                .into(),
            shows: vec!["condition met"],
            ..Step::default()
        },
        Step {
            say: "The layer 4 policy does not know the waypoint yet: productpage's node refuses it",
            run: "kubectl exec deploy/curl -- curl -s -o /dev/null -w '%{http_code}\\n' http://productpage:9080/productpage"
                .into(),
            shows: vec!["503"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "The layer 4 policy admits the waypoint",
            run: L4_POLICY_UPDATED.into(),
            shows: vec!["authorizationpolicy.security.istio.io/productpage-ztunnel configured"],
            ..Step::default()
        },
        Step {
            say: "This works: curl may GET",
            run: "kubectl exec deploy/curl -- curl -s http://productpage:9080/productpage | grep -o \"<title>.*</title>\""
                .into(),
            shows: vec!["<title>Simple Bookstore App</title>"],
            within: SHORT,
            ..Step::default()
        },
        Step {
            say: "This fails with an RBAC error: it is not a GET",
            run: "kubectl exec deploy/curl -- curl -s \"http://productpage:9080/productpage\" -X DELETE".into(),
            shows: vec!["RBAC: access denied"],
            ..Step::default()
        },
        Step {
            say: "This fails with an RBAC error: reviews-v1 has another identity",
            run: "kubectl exec deploy/reviews-v1 -- curl -s http://productpage:9080/productpage".into(),
            shows: vec!["RBAC: access denied"],
            ..Step::default()
        },
        Step {
            say: "Explain, for the same two requests",
            run: "meltemi authz explain --from default/curl --to productpage --method GET --path /productpage; \
                  meltemi authz explain --from default/curl --to productpage --method DELETE --path /productpage"
                .into(),
            code: 1,
            shows: vec!["ALLOW", "DENY", "productpage-waypoint"],
            ..Step::default()
        },
    ]
}

/// The second walkthrough: a waypoint for one Service, several rules with methods and paths.
pub fn kagenti() -> Vec<Step> {
    vec![
        Step {
            say: "A namespace with an API and its clients",
            run: "kubectl apply -f samples/kagenti/ && kubectl -n kagenti-system wait --for=condition=Programmed \
                  gateway/mlflow-waypoint --timeout=90s && kubectl -n kagenti-system wait --for=condition=Ready pods \
                  --all --timeout=90s"
                .into(),
            shows: vec!["condition met"],
            within: LONG,
            ..Step::default()
        },
        Step {
            say: "The policies are in force",
            run: "kubectl -n kagenti-system wait --for=condition=meltemi.dev/Enforced authorizationpolicy --all --timeout=30s"
                .into(),
            shows: vec!["condition met"],
            ..Step::default()
        },
        status("otel-collector may POST traces", "otel-collector", "POST", "/v1/traces", "200"),
        status("but not read", "otel-collector", "GET", "/api/experiments", "403"),
        status("kagenti-ui may GET everything", "kagenti-ui", "GET", "/api/experiments", "200"),
        status("but not DELETE", "kagenti-ui", "DELETE", "/api/experiments", "403"),
        Step {
            say: "Troubleshooting: the waypoint's Pod",
            run: "kubectl get pods -n kagenti-system -l gateway.networking.k8s.io/gateway-name=mlflow-waypoint".into(),
            shows: vec!["mlflow-waypoint-", "1/1", "Running"],
            ..Step::default()
        },
        Step {
            say: "Troubleshooting: the Service's label",
            run: "kubectl get svc mlflow -n kagenti-system -o yaml | grep waypoint".into(),
            shows: vec!["istio.io/use-waypoint: mlflow-waypoint"],
            ..Step::default()
        },
        Step {
            say: "Troubleshooting: the identity of a Pod",
            run: "istioctl proxy-config secret $(kubectl get pods -n kagenti-system -l app=otel-collector \
                  -o jsonpath='{.items[0].metadata.name}') -n kagenti-system"
                .into(),
            shows: vec!["spiffe://cluster.local/ns/kagenti-system/sa/otel-collector"],
            ..Step::default()
        },
        Step {
            say: "Troubleshooting: ambient mode",
            run: "kubectl get namespace kagenti-system -o yaml | grep ambient".into(),
            shows: vec!["istio.io/dataplane-mode: ambient"],
            ..Step::default()
        },
        Step {
            say: "Troubleshooting: a line for each connection",
            run: "kubectl logs -n istio-system -l app=ztunnel --tail=-1 | grep kagenti-system | tail -2".into(),
            shows: vec!["src.identity=\"spiffe://cluster.local/ns/kagenti-system/sa/"],
            ..Step::default()
        },
    ]
}

fn status(say: &'static str, from: &str, method: &str, path: &str, code: &'static str) -> Step {
    Step {
        say,
        run: format!(
            "kubectl exec -n kagenti-system deploy/{from} -- curl -s -o /dev/null -w '%{{http_code}}\\n' \
             -X {method} http://mlflow:5000{path}"
        ),
        shows: vec![code],
        within: SHORT,
        ..Step::default()
    }
}
