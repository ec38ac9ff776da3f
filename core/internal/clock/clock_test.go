package clock

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCountsInBubbleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		require.Zero(t, c.Now())
		time.Sleep(3 * time.Second) // virtual time
		require.EqualValues(t, 3*time.Second, c.Now())
		require.Equal(t, time.Duration(0), time.Until(c.Time(c.Now())))
	})
}

func BenchmarkNow(b *testing.B) {
	c := New()
	for b.Loop() {
		_ = c.Now()
	}
}

func BenchmarkTimeNow(b *testing.B) {
	for b.Loop() {
		_ = time.Now()
	}
}
