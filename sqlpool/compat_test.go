package sqlpool

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// What code that was written for pgx's pool asks of what it is given.
type (
	// fullDBTX is what sqlc generates for pgx, if :copyfrom and :batch are used.
	fullDBTX interface {
		Exec(context.Context, string, ...interface{}) (pgconn.CommandTag, error)
		Query(context.Context, string, ...interface{}) (pgx.Rows, error)
		QueryRow(context.Context, string, ...interface{}) pgx.Row
		CopyFrom(ctx context.Context, tableName pgx.Identifier, columnNames []string, rowSrc pgx.CopyFromSource) (int64, error)
		SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
	}
	// querierOfScany is pgxscan.Querier.
	querierOfScany interface {
		Query(ctx context.Context, query string, args ...interface{}) (pgx.Rows, error)
	}
	// pgxBeginner is for pgx.BeginFunc and pgx.BeginTxFunc.
	pgxBeginner interface {
		Begin(ctx context.Context) (pgx.Tx, error)
		BeginTx(ctx context.Context, txOptions pgx.TxOptions) (pgx.Tx, error)
	}
)

var (
	_ fullDBTX       = (*Pool)(nil)
	_ fullDBTX       = (*Conn)(nil)
	_ fullDBTX       = pgx.Tx(nil)
	_ querierOfScany = (*Pool)(nil)
	_ querierOfScany = (*Conn)(nil)
	_ pgxBeginner    = (*Pool)(nil)
	_ pgxBeginner    = (*Conn)(nil)
	_ pgx.Tx         = (*tx)(nil)
)

// A method that has the name of one of pgx's pool has its signature, our types
// for its; the exceptions are these.
func TestMethodsAreThoseOfPgxPool(t *testing.T) {
	for _, c := range []struct {
		theirs, ours reflect.Type
		differ       map[string]string // and why
		missing      map[string]string
	}{
		{
			theirs: reflect.TypeFor[*pgxpool.Pool](), ours: reflect.TypeFor[*Pool](),
			differ: map[string]string{"Close": "waits for ctx at most, and says so"},
			missing: map[string]string{
				"AcquireFunc":    "With: the function has another type anyway",
				"AcquireAllIdle": "for health checks, which the pool does",
				"Config":         "holds the password",
				"Stat":           "Stats",
			},
		},
		{
			theirs: reflect.TypeFor[*pgxpool.Conn](), ours: reflect.TypeFor[*Conn](),
			missing: map[string]string{"Hijack": "a connection has its place in the pool until it is closed"},
		},
	} {
		same := func(t reflect.Type) reflect.Type {
			if t == reflect.TypeFor[*pgxpool.Conn]() {
				return reflect.TypeFor[*Conn]()
			}
			return t
		}
		differ, missing := map[string]bool{}, map[string]bool{}
		for m := range c.theirs.Methods() {
			our, ok := c.ours.MethodByName(m.Name)
			if !ok {
				missing[m.Name] = true
				continue
			}
			equal := m.Type.IsVariadic() == our.Type.IsVariadic() &&
				m.Type.NumIn() == our.Type.NumIn() && m.Type.NumOut() == our.Type.NumOut()
			for i := 1; equal && i < m.Type.NumIn(); i++ {
				equal = same(m.Type.In(i)) == our.Type.In(i)
			}
			for i := 0; equal && i < m.Type.NumOut(); i++ {
				equal = same(m.Type.Out(i)) == our.Type.Out(i)
			}
			if !equal {
				differ[m.Name] = true
			}
		}
		require.ElementsMatch(t, slices.Collect(maps.Keys(c.differ)), slices.Collect(maps.Keys(differ)), c.ours)
		delete(missing, "Reset") // of the pool underneath, where that has it
		require.ElementsMatch(t, slices.Collect(maps.Keys(c.missing)), slices.Collect(maps.Keys(missing)), c.ours)
	}
}
