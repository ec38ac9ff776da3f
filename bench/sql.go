package main

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"slices"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/surgewall/surgewall/sqlpool"
)

// On ten connections, over TCP, to a server on this machine: so queries compete
// for its processors with the server. A point read is of one row of ten
// thousand, by pgx's cache of prepared statements. Ours has nothing but Max in
// its Config.
//
// A turn is half a second of goroutines that ask again as soon as they have
// their answer, on a pool that has been asked before.
var sqlRows = slices.Concat(nativeRows(), databaseRows(), []row{loanRow})

const connections = 10

var crowds = []int{1, 10, 100, 1000}

func nativeRows() (rows []row) {
	for _, q := range []question{selectOne, pointRead} {
		for _, n := range crowds {
			rows = append(rows, nativeRow(q, load{goroutines: n}))
		}
	}
	// What a server does for a request has a deadline.
	return append(rows, nativeRow(selectOne, load{goroutines: 100, deadline: true}))
}

func nativeRow(q question, l load) row {
	return loadRow(q.name, l, row{
		ours: contender{name: "sqlpool", start: native(l, q, openOurs)},
		peers: []contender{
			{"pgxpool", pgx5, native(l, q, openPgxPool)},
			{"database/sql", pgx5, l.database(q, openStdlib)},
		},
		aside: []contender{{"sqlpool DB()", "", l.database(q, openOursDB)}},
		floor: l.floor(q),
	})
}

// databaseRows: an *sql.DB, on our pool and on its own.
func databaseRows() (rows []row) {
	for _, q := range []question{selectOne, execOne, pointRead.prepared()} {
		for _, n := range crowds[:3] {
			l := load{goroutines: n}
			rows = append(rows, loadRow(q.name, l, row{
				ours:  contender{name: "sqlpool DB()", start: l.database(q, openOursDB)},
				peers: []contender{{"database/sql", pgx5, l.database(q, openStdlib)}},
				floor: l.floor(q),
			}))
			rows[len(rows)-1].name = "sql.DB, " + rows[len(rows)-1].name
		}
	}
	return rows
}

// loadRow completes a row of queries a second. The further figures are the time
// of 99 of 100 queries; the same by the fair time, that of a queue in which the
// first to come is the first served, which is the goroutines by the throughput;
// and how many queries the goroutine with the fewest had answered, as a share of
// those of the one with the most.
func loadRow(name string, l load, r row) row {
	goroutines := "goroutines"
	if l.goroutines == 1 {
		goroutines = "goroutine"
	}
	r.name = fmt.Sprintf("%s, %d %s", name, l.goroutines, goroutines)
	if l.deadline {
		r.name += ", deadlines"
	}
	r.unit, r.aim = "queries/s", more
	r.slow, r.procs = true, []int{runtime.NumCPU()}
	r.also = []extra{{"p99", "ms", less}, {"p99 by fair", "times", less}, {"least served", "of most", more}}
	return r
}

// question is a statement that has one answer.
type question struct {
	name string
	sql  string
	want func(id int) int

	keyed    bool // it asks by an id
	exec     bool // it is run for how many rows it touches
	prepares bool // database/sql has a Stmt of it
}

// keys are the rows of the table that is read, with ids from 0.
const keys = 10_000

var (
	selectOne = question{name: "select 1", sql: "select 1", want: func(int) int { return 1 }}
	execOne   = question{name: "exec", sql: "select 1", want: func(int) int { return 1 }, exec: true}
	pointRead = question{
		name: "point read", sql: "select answer from " + table + " where id = $1",
		want: func(id int) int { return 3 * id }, keyed: true,
	}
)

func (q question) prepared() question {
	q.name, q.prepares = "Stmt, "+q.name, true
	return q
}

// loanRow is a connection that is lent and given back, by one goroutine, without
// a query. Ours looks each time whether the server has closed it.
var loanRow = row{
	name: "loan alone, no query", procs: []int{runtime.NumCPU()},
	ours: contender{name: "sqlpool", start: loans(openOurs, func(ctx context.Context, p *sqlpool.Pool) error {
		c, err := p.Acquire(ctx)
		if err == nil {
			c.Release()
		}
		return err
	})},
	peers: []contender{
		{"pgxpool", pgx5, loans(openPgxPool, func(ctx context.Context, p *pgxpool.Pool) error {
			c, err := p.Acquire(ctx)
			if err == nil {
				c.Release()
			}
			return err
		})},
		{"database/sql", pgx5, loans(openStdlib, databaseLoan)},
	},
	aside: []contender{{"sqlpool DB()", "", loans(openOursDB, databaseLoan)}},
}

func databaseLoan(ctx context.Context, db *sql.DB) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	return c.Close()
}

func loans[P any](open opener[P], loan func(context.Context, P) error) start {
	return func(ctx context.Context, p plan) (measure, func(), error) {
		db, stop, err := open(ctx, p)
		if err != nil {
			return nil, nil, err
		}
		measure, _, err := calls(1, func() (func(int) int, func()) {
			return func(n int) (good int) {
				for range n {
					if loan(ctx, db) == nil {
						good++
					}
				}
				return good
			}, nothing
		})(ctx, p)
		return measure, stop, err
	}
}
