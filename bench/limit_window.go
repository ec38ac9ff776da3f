package main

import (
	"time"

	"github.com/surgewall/surgewall/core/limit"
)

// Peers of a sliding window are those that count in windows: httprate slides,
// the others do not. Ours is limited to a million in a window, and so has
// windows of a millisecond where nothing is to be refused.
var windowRows = []row{
	{
		name: "sliding window, admitted",
		ours: contender{name: "SlidingWindow.AllowN", start: lone(func() func(int) int {
			return counted(window(plenty/1000, time.Millisecond))
		})},
		peers: only(admitting(1), windowed...),
		floor: clockAndSwap,
	},
	{
		name: "sliding window, refused",
		ours: contender{name: "SlidingWindow.AllowN", start: lone(func() func(int) int {
			return spent(counted(window(1, day)))
		})},
		peers: only(refusing, windowed...),
		aside: []contender{
			{"SlidingLog.AllowN", "", lone(func() func(int) int {
				return spent(logged(must(limit.NewSlidingLog(limit.SlidingLogConfig{Limit: 1, Window: day}))))
			})},
		},
		floor: clockAndRead,
	},
}

var windowed = []string{"failsafe-go bursty", "go-limiter", "ulule/limiter", "httprate"}

func window(most int, length time.Duration) *limit.SlidingWindow {
	return must(limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: most, Window: length}))
}

func counted(w *limit.SlidingWindow) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if w.AllowN(1) {
				admitted++
			}
		}
		return admitted
	}
}

func logged(w *limit.SlidingLog) func(int) int {
	return func(n int) (admitted int) {
		for range n {
			if w.AllowN(1) {
				admitted++
			}
		}
		return admitted
	}
}
