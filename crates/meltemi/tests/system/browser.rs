// SPDX-License-Identifier: Apache-2.0
//! The page of Bookinfo in a real browser, through the ingress gateway and the mesh.

use crate::machine::{KUBECTLS, Machine};

#[test]
fn a_browser_shows_the_page_of_bookinfo() {
    let machine = Machine::start(KUBECTLS[1]);
    let setup = [
        ("kubectl label namespace default istio.io/dataplane-mode=ambient", "labeled"),
        ("kubectl apply -f samples/bookinfo/bookinfo.yaml -f samples/bookinfo/gateway.yaml", "created"),
        ("kubectl wait --for=condition=Programmed gateway/bookinfo-gateway --timeout=120s", "condition met"),
        ("kubectl wait --for=condition=Available deployments --all --timeout=120s", "condition met"),
    ];
    for (command, shows) in setup {
        machine.step(command, shows, 0);
    }
    let (_forward, port) = machine.forward("svc/bookinfo-gateway-istio", 80);
    let profile = machine.file("browser");
    // Chromium's own sandbox does not start as root; what it shows is ours.
    let browse = format!(
        "chromium --headless --no-sandbox --disable-gpu --user-data-dir={} --timeout=20000 --dump-dom \
         http://localhost:{port}/productpage 2>/dev/null",
        profile.display()
    );
    for shows in ["<title>Simple Bookstore App</title>", "PublisherA", "Reviewer2", "of 5 stars\">★★★★"]
    {
        machine.eventually(&browse, shows);
    }
}
