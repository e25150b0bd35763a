// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the conformance suite of the Gateway API; scripts/conformance.sh says against what.
package conformance

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

// TestConformance runs the profiles and features that the suite's own flags name. TESTS names a file that lists the tests to
// run, one a line; with WAYPOINT the mesh's Services are behind a waypoint of that name.
func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	if list := os.Getenv("TESTS"); list != "" {
		options.SkipTests = append(options.SkipTests, testsBut(t, list)...)
	}
	if waypoint := os.Getenv("WAYPOINT"); waypoint != "" {
		deployWaypoint(t, options.Client, waypoint)
	}
	conformance.RunConformanceWithOptions(t, options)
}

// testsBut returns the suite's tests that a file does not list. A name that the suite does not know fails: it would be a
// test that nobody runs.
func testsBut(t *testing.T, list string) []string {
	text, err := os.ReadFile(list)
	require.NoError(t, err)
	wanted := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if name := strings.TrimSpace(line); name != "" && !strings.HasPrefix(name, "#") {
			wanted[name] = true
		}
	}
	var others []string
	for _, test := range tests.ConformanceTests {
		if !wanted[test.ShortName] {
			others = append(others, test.ShortName)
		}
		delete(wanted, test.ShortName)
	}
	require.Empty(t, wanted, "%s: unknown tests", list)
	return others
}

// deployWaypoint makes the waypoint before the suite makes what is behind it; the suite takes the namespace as it is.
func deployWaypoint(t *testing.T, c client.Client, name string) {
	hbone := gatewayv1.Listener{Name: "mesh", Port: 15008, Protocol: "HBONE"}
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: suite.MeshNamespace}},
		&gatewayv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{Namespace: suite.MeshNamespace, Name: name},
			Spec: gatewayv1.GatewaySpec{
				GatewayClassName: "istio-waypoint",
				Listeners:        []gatewayv1.Listener{hbone},
			},
		},
	} {
		require.NoError(t, client.IgnoreAlreadyExists(c.Create(t.Context(), object)))
	}
	key := client.ObjectKey{Namespace: suite.MeshNamespace, Name: name}
	require.Eventually(t, func() bool {
		var waypoint gatewayv1.Gateway
		if err := c.Get(t.Context(), key, &waypoint); err != nil {
			return false
		}
		for _, condition := range waypoint.Status.Conditions {
			if condition.Type == "Programmed" && condition.Status == metav1.ConditionTrue {
				return true
			}
		}
		return false
	}, 3*time.Minute, 100*time.Millisecond, "the waypoint is not programmed")
}
