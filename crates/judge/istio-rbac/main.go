// SPDX-License-Identifier: Apache-2.0

// Command istio-rbac writes the RBAC filters that Istio's control plane generates for AuthorizationPolicies, as JSON. It
// reads the policies as a YAML stream; those whose names are the same before "-" apply together.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sort"
	"strings"

	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"istio.io/api/security/v1beta1"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/security/authz/builder"
	"istio.io/istio/pilot/pkg/security/trustdomain"
	_ "istio.io/istio/pkg/config/schema/collections"
)

// filters returns the filters that a waypoint of Istio has for policies that apply together.
func filters(policies []model.AuthorizationPolicy) ([]*hcm.HttpFilter, error) {
	result := model.AuthorizationPoliciesResult{}
	for _, policy := range policies {
		switch policy.Spec.Action {
		case v1beta1.AuthorizationPolicy_DENY:
			result.Deny = append(result.Deny, policy)
		case v1beta1.AuthorizationPolicy_ALLOW:
			result.Allow = append(result.Allow, policy)
		default:
			return nil, fmt.Errorf("%s: action %s is not compared", policy.Name, policy.Spec.Action)
		}
	}
	bundle := trustdomain.NewBundle("cluster.local", nil)
	// The peer's identity comes from filter state at a waypoint.
	built := builder.New(bundle, nil, result, builder.Option{UseFilterState: true})
	return built.BuildHTTP(), nil
}

func run(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	configs, _, err := crd.ParseInputs(string(text))
	if err != nil {
		return err
	}
	groups := map[string][]model.AuthorizationPolicy{}
	for _, config := range configs {
		spec, ok := config.Spec.(*v1beta1.AuthorizationPolicy)
		if !ok {
			return fmt.Errorf("%s is not an AuthorizationPolicy", config.Name)
		}
		name, _, _ := strings.Cut(config.Name, "-")
		policy := model.AuthorizationPolicy{Name: config.Name, Namespace: config.Namespace, Spec: spec}
		groups[name] = append(groups[name], policy)
	}
	out := map[string][]json.RawMessage{}
	for name, group := range groups {
		built, err := filters(group)
		if err != nil {
			return err
		}
		for _, filter := range built {
			written, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(filter)
			if err != nil {
				return err
			}
			out[name] = append(out[name], written)
		}
	}
	names := make([]string, 0, len(out))
	for name := range out {
		names = append(names, name)
	}
	sort.Strings(names)
	// One group a line.
	var lines []string
	for _, name := range names {
		written, err := json.Marshal(out[name])
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%q: %s", name, written))
	}
	fmt.Printf("%d groups of policies\n", len(names))
	return os.WriteFile(to, []byte("{\n"+strings.Join(lines, ",\n")+"\n}\n"), 0o644)
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: istio-rbac POLICIES.yaml FILTERS.json")
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
