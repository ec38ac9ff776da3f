package otelhook

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core"
)

func TestRetriesAreCounted(t *testing.T) {
	b := newBackend(t)
	require.True(t, b.Enabled(core.KindRetried))
	for n := range int64(3) {
		b.Observe(t.Context(), core.Event{Kind: core.KindRetried, Component: "orders", N: n + 1, ErrorType: "timeout"})
	}
	b.Observe(t.Context(), core.Event{Kind: core.KindRetried, Component: "orders"})
	const name = "surgewall.retry.retries"
	all := b.metrics(t)
	require.InDelta(t, 3, all[name+"{error.type=timeout,surgewall.retry.name=orders}"], 0)
	require.InDelta(t, 1, all[name+"{surgewall.retry.name=orders}"], 0)
	require.Empty(t, b.spans.Ended())
}
