// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the conformance suite of the Gateway API; scripts/conformance.sh says against what.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformanceWithOptions(t, conformance.DefaultOptions(t))
}
