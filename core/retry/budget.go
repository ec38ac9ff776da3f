package retry

import (
	"context"
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/internal/clock"
)

// Off, as the value of a field of BudgetConfig that allows it, switches off
// what the field says. A field left at 0 has its default.
const Off = -1

// ErrBudget is what errors.Is finds in the *core.Rejection of a Budget: there
// were more retries than successes pay for.
var ErrBudget = errors.New("retry: budget used up")

// BudgetConfig configures NewBudget. The zero BudgetConfig is a good one.
type BudgetConfig struct {
	// Name is the name in rejections, events and reports.
	// Default: "retry_budget".
	Name string

	// Percent is how many retries 100 successes pay for, 1 to 100.
	// Default: 10. Off: successes pay for none.
	Percent int

	// MinPerSecond is how many retries each second pays for, whatever
	// succeeds, so that a program with few calls may retry at all; at most
	// 1,000,000. Default: 1. Off: none.
	MinPerSecond int

	// Max is the most that is saved up, so how many retries there may be at
	// once; at most 1,000,000,000. Default: 100.
	Max int

	// Observer hears core.KindRejected for each refusal. Default: none.
	Observer core.Observer
}

const (
	maxPercent      = 100
	maxMinPerSecond = 1_000_000
	maxMax          = 1_000_000_000
)

func (cfg BudgetConfig) withDefaults() BudgetConfig {
	if cfg.Name == "" {
		cfg.Name = "retry_budget"
	}
	cfg.Percent = orDefault(cfg.Percent, 10)
	cfg.MinPerSecond = orDefault(cfg.MinPerSecond, 1)
	cfg.Max = orDefault(cfg.Max, 100)
	return cfg
}

func orDefault(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

func (cfg BudgetConfig) check() error {
	bad := core.Check("retry.BudgetConfig")
	bad.If(cfg.Percent < Off || cfg.Percent > maxPercent, "Percent", cfg.Percent, "must be 1 to 100, or Off")
	bad.If(cfg.MinPerSecond < Off || cfg.MinPerSecond > maxMinPerSecond, "MinPerSecond", cfg.MinPerSecond, "must be 1 to 1000000, or Off")
	bad.If(cfg.Max < 0 || cfg.Max > maxMax, "Max", cfg.Max, "must be 1 to 1000000000")
	bad.If(cfg.Percent == Off && cfg.MinPerSecond == Off, "Percent", cfg.Percent, "must not be Off together with MinPerSecond")
	return bad.Err()
}

// Budget bounds retries to a share of the calls that succeed. It is a token
// bucket: a retry takes a token, a success puts in Percent hundredths of one, a
// second MinPerSecond of them; there are never more than Max, and at the start
// there are as many. In any time t with s successes there are so at most
// Max + MinPerSecond·t + s·Percent/100 retries, however many goroutines call
// and whatever the clock does. Share one among all who call the same thing:
// retries and hedges, of all their callers.
//
// It is safe for concurrent use, a core.Component, and needs no Close. A nil
// *Budget is no bound.
type Budget struct {
	cfg     BudgetConfig
	clock   clock.Clock
	refusal *core.Rejection

	// saved + minted(now) is what there is, in hundredths of a token: so a
	// success adds an integer, and the time needs none. It may come to above
	// Max: what is above is taken off when the next token is taken, as no time
	// and no success takes anything away meanwhile.
	saved atomic.Int64

	// mintedBefore is minted as of the last who took a token, and grew since.
	// Written with mu held.
	mintedBefore atomic.Int64

	_ [128]byte // a success reads what is before, and writes it seldom

	mu      sync.Mutex // held to take a token
	taken   atomic.Uint64
	refused atomic.Uint64
}

// token is 1 in the unit of saved.
const token = 100

// NewBudget makes a full budget. The error lists every bad field of cfg;
// errors.Is(err, core.ErrConfig).
func NewBudget(cfg BudgetConfig) (*Budget, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	b := &Budget{
		cfg:     cfg,
		clock:   clock.New(),
		refusal: &core.Rejection{Guard: cfg.Name, Reason: core.RetryBudget, Err: ErrBudget},
	}
	b.saved.Store(b.most())
	return b, nil
}

// Fund says that a call has succeeded: that what was called works. An answer
// that is the caller's own fault, such as a 404, says so too. While the budget is
// full, Fund writes nothing.
func (b *Budget) Fund() {
	if b == nil || b.cfg.Percent == Off || b.saved.Load()+b.mintedBefore.Load() >= b.most() {
		return
	}
	b.saved.Add(int64(b.cfg.Percent))
}

// Take asks for one retry, before the pause that precedes it. The error is a
// *core.Rejection for which errors.Is(err, ErrBudget). It has no RetryAfter,
// since who was refused should not come back by itself: the caller gives up
// with the error that it was to retry.
//
// There is no giving back: a retry that was then not made, since its context
// ended in the pause, is paid for all the same.
func (b *Budget) Take() error {
	if b == nil {
		return nil
	}
	// A flood of refusals takes no lock.
	if b.available() >= token && b.take() {
		b.taken.Add(1)
		return nil
	}
	b.refused.Add(1)
	if b.cfg.Observer != nil {
		core.Emit(context.Background(), b.cfg.Observer, core.Event{
			Kind: core.KindRejected, Reason: core.RetryBudget, Component: b.cfg.Name, N: 1,
		})
	}
	return b.refusal
}

// take takes a token if there is one. The time is never before that of the last
// who took one: what an older time leaves room for below Max would be minted
// again.
func (b *Budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	minted := max(b.minted(), b.mintedBefore.Load())
	for {
		saved := b.saved.Load()
		there := min(saved+minted, b.most())
		if there < token {
			return false
		}
		if b.saved.CompareAndSwap(saved, there-token-minted) {
			b.mintedBefore.Store(minted)
			return true
		}
	}
}

// available is what there is now, in the unit of saved.
func (b *Budget) available() int64 { return min(b.saved.Load()+b.minted(), b.most()) }

func (b *Budget) most() int64 { return int64(b.cfg.Max) * token }

// minted is what the time since the start has paid for, in the unit of saved,
// rounded down. As it is reckoned from the start, nothing is lost in rounding
// again and again. It fits: 292 years at the highest rate are below 2^60.
func (b *Budget) minted() int64 {
	if b.cfg.MinPerSecond == Off {
		return 0
	}
	hi, lo := bits.Mul64(uint64(b.clock.Now()), uint64(b.cfg.MinPerSecond)*token)
	n, _ := bits.Div64(hi, lo, uint64(time.Second))
	return int64(n)
}
