package sqlpool

import (
	"context"
	"errors"
	"runtime"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// copyFrom has no StatementTimeout: how long it takes is up to its source.
func (s *session) copyFrom(ctx context.Context, on querier, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	src := &source{CopyFromSource: from, stop: stop}
	s.start(ctx)
	n, err := on.CopyFrom(ctx, table, columns, src)
	if echo(err) && ctx.Err() == nil {
		_ = s.note(ctx, nil) // the source is the caller's
	} else {
		err = s.note(ctx, err)
	}
	src.resume()
	return n, err
}

// echo reports whether err is the server's word that the source has failed. It
// has the code of a statement_timeout and of pg_cancel_backend, 57014, and a text
// in the server's language: what tells it from those is the function of the server
// that raises it.
func echo(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == "57014" && pg.Routine == "CopyGetData"
}

// source is a caller's, which pgx reads on a goroutine of its own. There, a
// panic would end the program, and runtime.Goexit leave pgx waiting: both are
// brought to the caller's goroutine.
type source struct {
	pgx.CopyFromSource
	stop context.CancelFunc // ends pgx's wait

	// Written on pgx's goroutine, and read when that has ended.
	panicked any
	exited   bool
	err      error
}

var errSource = errors.New("sqlpool: the source of a copy panicked")

func (c *source) Next() (more bool) {
	returned := false
	defer func() { c.left(returned, recover()) }()
	more = c.CopyFromSource.Next()
	returned = true
	return more
}

func (c *source) Values() (values []any, err error) {
	returned := false
	defer func() {
		if c.left(returned, recover()); c.err != nil {
			err = c.err
		}
	}()
	values, err = c.CopyFromSource.Values()
	returned = true
	return values, err
}

func (c *source) Err() (err error) {
	if c.err != nil {
		return c.err
	}
	returned := false
	defer func() {
		if c.left(returned, recover()); c.err != nil {
			err = c.err
		}
	}()
	err = c.CopyFromSource.Err()
	returned = true
	return err
}

// left notes how a method of the caller's source was left.
func (c *source) left(returned bool, panicked any) {
	switch {
	case panicked != nil:
		c.panicked, c.err = panicked, errSource
	case !returned:
		c.exited = true
		c.stop()
	}
}

// resume goes on with what the source did, when the copy has ended.
func (c *source) resume() {
	switch {
	case c.panicked != nil:
		panic(c.panicked)
	case c.exited:
		runtime.Goexit()
	}
}
