package main

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"github.com/jackc/puddle/v2"

	"github.com/surgewall/surgewall/core/pool"
)

const jackc = "github.com/jackc/puddle/v2"

// newLender makes a pool of so many resources.
type newLender func(resources int) lender

// lender is a pool. The loop over n loans is its own, so that a row has no
// indirect call in each: it counts the good ones and keeps the last error.
type lender struct {
	lend func(ctx context.Context, n int, hold func()) (good int, last error)
	stop func()
}

func oursOf(resources int) lender {
	p := must(pool.New(pool.Config[int]{
		Dial: func(context.Context) (int, error) { return 1, nil },
		Max:  resources,
	}))
	return lender{func(ctx context.Context, n int, hold func()) (good int, last error) {
		for range n {
			l, err := p.Acquire(ctx)
			if err != nil {
				last = err
				continue
			}
			good += l.Value()
			if hold != nil {
				hold()
			}
			l.Release()
		}
		return good, last
	}, func() { _ = p.Close(context.Background()) }}
}

func puddleOf(resources int) lender {
	p := must(puddle.NewPool(&puddle.Config[int]{
		Constructor: func(context.Context) (int, error) { return 1, nil },
		Destructor:  func(int) {},
		MaxSize:     int32(resources),
	}))
	return lender{func(ctx context.Context, n int, hold func()) (good int, last error) {
		for range n {
			r, err := p.Acquire(ctx)
			if err != nil {
				last = err
				continue
			}
			good += r.Value()
			if hold != nil {
				hold()
			}
			r.Release()
		}
		return good, last
	}, p.Close}
}

// databaseOf is database/sql's pool on a driver that does nothing.
func databaseOf(resources int) lender {
	db := sql.OpenDB(idleDriver{})
	db.SetMaxOpenConns(resources)
	db.SetMaxIdleConns(resources)
	return lender{func(ctx context.Context, n int, hold func()) (good int, last error) {
		for range n {
			c, err := db.Conn(ctx)
			if err != nil {
				last = err
				continue
			}
			if hold != nil {
				hold()
			}
			if err := c.Close(); err != nil {
				last = err
				continue
			}
			good++
		}
		return good, last
	}, func() { _ = db.Close() }}
}

// idleDriver is a driver, its connector and its connections.
type idleDriver struct{}

func (d idleDriver) Open(string) (driver.Conn, error)             { return d, nil }
func (d idleDriver) Connect(context.Context) (driver.Conn, error) { return d, nil }
func (d idleDriver) Driver() driver.Driver                        { return d }
func (idleDriver) Prepare(string) (driver.Stmt, error)            { return nil, driver.ErrSkip }
func (idleDriver) Begin() (driver.Tx, error)                      { return nil, driver.ErrSkip }
func (idleDriver) Close() error                                   { return nil }

// channelOf is a pool that can do nothing but hand out: a buffered channel.
func channelOf(resources int) lender {
	free := make(chan int, resources)
	for range resources {
		free <- 1
	}
	return lender{func(ctx context.Context, n int, hold func()) (good int, last error) {
		done := ctx.Done()
		for range n {
			var v int
			if done == nil {
				v = <-free
			} else {
				select {
				case v = <-free:
				case <-done:
					last = ctx.Err()
					continue
				}
			}
			good += v
			if hold != nil {
				hold()
			}
			free <- v
		}
		return good, last
	}, nothing}
}
