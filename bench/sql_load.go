package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// load is how many ask at once.
type load struct {
	goroutines int
	deadline   bool // each goroutine's context ends in a minute
}

// ask is one query, and its answer.
type ask func(ctx context.Context, id int) (int, error)

// by measures goroutines that ask as the elements of asks do, in turn.
func (l load) by(q question, asks []ask) measure {
	var room int // queries of one goroutine, as far as is known
	return func(d time.Duration) (sample, error) {
		took := make([][]time.Duration, l.goroutines)
		for i := range took {
			took[i] = make([]time.Duration, 0, max(room, 64))
		}
		errs := make([]error, l.goroutines)
		epoch := time.Now()
		whole, allocs := together(l.goroutines, func(i int) {
			took[i], errs[i] = l.work(q, asks[i%len(asks)], i, epoch, d, took[i])
		})
		var all []time.Duration
		fewest, most := len(took[0]), 0
		for i := range took {
			if errs[i] != nil {
				return sample{}, errs[i]
			}
			all = append(all, took[i]...)
			fewest, most = min(fewest, len(took[i])), max(most, len(took[i]))
		}
		room = 2 * most // of the next turn, so that none has to grow
		slices.Sort(all)
		p99 := all[len(all)*99/100]
		queries := float64(len(all))
		fair := whole.Seconds() * float64(l.goroutines) / queries
		return sample{
			value: queries / whole.Seconds(), allocs: allocs / queries,
			also: []float64{p99.Seconds() * 1e3, p99.Seconds() / fair, float64(fewest) / float64(most)},
		}, nil
	}
}

// work asks for d, at least once, and appends the time of each query to took. The
// clock is read once for each.
func (l load) work(q question, ask ask, seed int, epoch time.Time, d time.Duration, took []time.Duration) ([]time.Duration, error) {
	ctx := context.Background()
	if l.deadline {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	last := time.Since(epoch)
	end := last + d
	id := seed * 7919 % keys
	for more := true; more; more = last < end {
		got, err := ask(ctx, id)
		if err != nil {
			return took, err
		}
		if want := q.want(id); got != want {
			return took, fmt.Errorf("%s: %d for id %d, want %d", q.name, got, id, want)
		}
		id = (id + 7919) % keys // a prime: all rows before one comes again
		now := time.Since(epoch)
		took = append(took, now-last)
		last = now
	}
	return took, nil
}
