package limit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/surgewall/surgewall/core/limit"
)

// Five a second, ten calls 100 ms apart: five go through at once, and the others
// would have to wait until the window that they were counted in is over, and a
// fifth of the next. Then it is one each 200 ms.
func ExampleSlidingWindow() {
	inVirtualTime(func() {
		window, _ := limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: 5, Window: time.Second})
		for i := range 10 {
			d := window.Take(1)
			fmt.Printf("call %d: %v, %d left, retry after %v\n", i, d.OK, d.Remaining, d.RetryAfter)
			time.Sleep(100 * time.Millisecond)
		}
	})
	// Output:
	// call 0: true, 4 left, retry after 0s
	// call 1: true, 3 left, retry after 0s
	// call 2: true, 2 left, retry after 0s
	// call 3: true, 1 left, retry after 0s
	// call 4: true, 0 left, retry after 0s
	// call 5: false, 0 left, retry after 700ms
	// call 6: false, 0 left, retry after 600ms
	// call 7: false, 0 left, retry after 500ms
	// call 8: false, 0 left, retry after 400ms
	// call 9: false, 0 left, retry after 300ms
}

func ExampleNewSlidingWindow() {
	_, err := limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: -1})
	fmt.Println(err)
	// Output:
	// limit.SlidingWindowConfig.Limit: -1: must be 1 to 1048575
	// limit.SlidingWindowConfig.Window: 0s: must be above 0 and at most 10000h
}

// Those who wait go in order, each at its own time, as soon as the estimate
// leaves room.
func ExampleSlidingWindow_Wait() {
	inVirtualTime(func() {
		window, _ := limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: 4, Window: time.Second})
		window.AllowN(4)
		start := time.Now()
		for range 4 {
			_ = window.Wait(context.Background(), 1)
			fmt.Print(time.Since(start), " ")
		}
	})
	// Output: 1.25s 1.5s 1.75s 2s
}

func ExampleSlidingWindow_Reserve() {
	inVirtualTime(func() {
		window, _ := limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: 4, Window: time.Second})
		window.AllowN(4)
		r, err := window.Reserve(2, 2*time.Second)
		if err != nil {
			panic(err)
		}
		fmt.Println(r.Delay())
		r.Cancel()
		_, err = window.Reserve(4, time.Second)
		fmt.Println(err)
	})
	// Output:
	// 1.5s
	// limit: rate limit exceeded: refused by "sliding_window": retry after 2s
}

func ExampleSlidingWindow_Reconfigure() {
	inVirtualTime(func() {
		window, _ := limit.NewSlidingWindow(limit.SlidingWindowConfig{Limit: 100, Window: time.Minute})
		window.AllowN(80)
		err := window.Reconfigure(limit.SlidingWindowConfig{Limit: 200, Window: time.Minute})
		d := window.Peek(0)
		fmt.Println(err, d.Remaining, "of", d.Limit)
	})
	// Output: <nil> 120 of 200
}
