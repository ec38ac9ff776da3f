package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m).Run()) }

func TestMedian(t *testing.T) {
	require.Zero(t, median(nil))
	require.Equal(t, 2.0, median([]float64{2}))
	require.Equal(t, 2.0, median([]float64{9, 1, 2}))
	require.Equal(t, 2.5, median([]float64{9, 1, 3, 2}))
	in := []float64{3, 1, 2}
	median(in)
	require.Equal(t, []float64{3, 1, 2}, in, "the rounds keep their order")
}

func TestRatioIsBelowOneWhereOursIsBetter(t *testing.T) {
	require.Equal(t, 0.5, ratio(50, 100, less), "half the time")
	require.Equal(t, 2.0, ratio(100, 50, less))
	require.Equal(t, 0.5, ratio(100, 50, more), "twice the queries")
	require.Equal(t, 2.0, ratio(50, 100, more))
	require.InDelta(t, 0.1, ratio(1.01, 1.1, exact), 1e-9, "a tenth as far off")
	require.InDelta(t, 2, ratio(0.5, 1.25, exact), 1e-9, "too little is off, too")
	require.Equal(t, 1.0, ratio(1, 0.996, exact), "near enough is near enough")
}

// Three rounds, of which one was disturbed for both: the ratio of the medians
// would be 100/400, that of the pairs is 1/2.
func TestRatioIsOfPairs(t *testing.T) {
	var p pairs
	p.add(sample{value: 100}, sample{value: 200, allocs: 1})
	p.add(sample{value: 1000}, sample{value: 400, allocs: 2})
	p.add(sample{value: 50, allocs: 0.001}, sample{value: 500, allocs: 2})
	r := p.result(less)
	require.Equal(t, 100.0, r.Ours)
	require.Equal(t, 400.0, r.Theirs)
	require.Equal(t, 0.5, r.Ratio)
	require.Zero(t, r.OursAllocs)
	require.Equal(t, 2.0, r.TheirsAllocs)
	require.Equal(t, 2.0, p.result(more).Ratio)
}

func TestBestPeer(t *testing.T) {
	rows := func(a aim) []result {
		return []result{
			{Row: "a", Peer: "x", Theirs: 3, aim: a},
			{Row: "a", Peer: "y", Theirs: 1, aim: a},
			{Row: "a", Peer: "z", Theirs: 2, aim: a},
			{Row: "a", Peer: "w", Theirs: 0.5, aim: a, aside: true},
			{Row: "a", Procs: 2, Peer: "x", Theirs: 7, aim: a},
			{Row: "b", Peer: "x", Theirs: 5, aim: a},
			{Row: "c", Peer: "w", Theirs: 1, aim: a, aside: true},
			{Row: "c", Peer: "x", Theirs: 5, aim: a},
		}
	}
	peers := func(results []result) (names string) {
		for _, r := range best(results) {
			names += r.Peer
		}
		return names
	}
	require.Equal(t, "yxxx", peers(rows(less)))
	require.Equal(t, "xxxx", peers(rows(more)))
	require.Equal(t, "yxxx", peers(rows(exact)))
}

// fake is a contender whose calls take a fixed time, and do what they should if
// honest.
func fake(name string, took time.Duration, honest bool, log *[]string) contender {
	return contender{name: name, start: func(context.Context, plan) (measure, func(), error) {
		loop := func(n int) int {
			if honest {
				return n
			}
			return n - 1
		}
		return func(d time.Duration) (sample, error) {
			*log = append(*log, name)
			_, _, err := timed(1, loop, 10)
			return sample{value: float64(took), also: []float64{float64(3 * took)}}, err
		}, func() { *log = append(*log, "stop "+name) }, nil
	}}
}

func TestRunsAlternate(t *testing.T) {
	var log []string
	r := row{
		name:  "r",
		procs: []int{1},
		ours:  fake("us", 10, true, &log),
		peers: []contender{fake("a", 20, true, &log)},
		aside: []contender{fake("b", 5, true, &log)},
		floor: fake("floor", 1, true, &log),
	}
	got, err := plan{rounds: 2}.measure(t.Context(), "limit", r)
	require.NoError(t, err)
	require.Equal(t, strings.Fields("us a b floor  us a us b floor  a us b us floor"), log[:14])
	require.ElementsMatch(t, []string{"stop us", "stop a", "stop b", "stop floor"}, log[14:])
	require.Len(t, got, 2)
	require.Equal(t, 0.5, got[0].Ratio)
	require.Equal(t, 2.0, got[1].Ratio)
	require.Equal(t, 1.0, got[1].Floor)
	require.Equal(t, "ns", got[0].Unit)
	require.False(t, got[0].aside)
	require.True(t, got[1].aside)
}

// What is not measured in turns is started anew for each measurement, and one
// measurement may tell several figures.
func TestRunsOnce(t *testing.T) {
	var log []string
	r := row{
		name:  "r",
		once:  true,
		procs: []int{1, 2},
		also:  []extra{{"thrice", "3 ns", less}},
		ours:  fake("us", 10, true, &log),
		peers: []contender{fake("a", 20, true, &log), fake("b", 5, true, &log)},
	}
	got, err := plan{rounds: 7}.measure(t.Context(), "limit", r)
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("us stop us a stop a b stop b ", 2), strings.Join(log, " ")+" ")
	var told []string
	for _, g := range got {
		told = append(told, fmt.Sprint(g.Procs, " ", g.Row, " ", g.Ours, " ", g.Unit, " ", g.Peer, " ", g.Theirs))
	}
	require.Equal(t, []string{
		"1 r 10 ns a 20", "1 r 10 ns b 5", "1 r, thrice 30 3 ns a 60", "1 r, thrice 30 3 ns b 15",
		"2 r 10 ns a 20", "2 r 10 ns b 5", "2 r, thrice 30 3 ns a 60", "2 r, thrice 30 3 ns b 15",
	}, told)
}

func TestWrongAnswersFail(t *testing.T) {
	var log []string
	r := row{ours: fake("us", 1, true, &log), peers: []contender{fake("liar", 1, false, &log)}}
	_, err := plan{rounds: 1}.measure(t.Context(), "limit", r)
	require.EqualError(t, err, "procs 1: liar: only 9 of 10 calls did what they should")
	require.Contains(t, log, "stop us")
	require.Contains(t, log, "stop liar")
}

func TestBadArguments(t *testing.T) {
	for want, args := range map[string][]string{
		`unknown area "disk": there are limit, circuit, balance, pool, http, sql`: {"-area", "disk"},
		`unexpected argument "limit"`:     {"limit"},
		`no row has "nought" in its name`: {"-row", "nought"},
	} {
		require.EqualError(t, run(t.Context(), args, io.Discard, io.Discard), want)
	}
	require.Error(t, run(t.Context(), []string{"-fast"}, io.Discard, io.Discard))
}

func TestAreaWithoutRowsSaysSo(t *testing.T) {
	var out, log bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-area", "balance", "-json"}, &out, &log))
	require.Equal(t, "[]\n", out.String())
	require.Equal(t, "balance: no rows yet\n", log.String())
}

// Further figures have aims of their own.
func TestAimsOfFurtherFigures(t *testing.T) {
	r := row{
		name: "r", aim: more, ours: contender{name: "us"}, peers: []contender{{name: "them"}},
		also: []extra{{"time", "ms", less}, {"least", "of most", more}},
	}
	var p pairs
	p.add(sample{value: 2, also: []float64{2, 2}}, sample{value: 1, also: []float64{1, 1}})
	var ratios []float64
	for _, g := range r.results("sql", 1, []pairs{p}, nil) {
		ratios = append(ratios, g.Ratio)
	}
	require.Equal(t, []float64{0.5, 2, 0.5}, ratios)
}

func TestOneRow(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-row", "open, permit", "-quick", "-all"}, &out, io.Discard))
	require.Contains(t, out.String(), "gobreaker TwoStep")
	require.Contains(t, out.String(), "failsafe-go")
	require.NotContains(t, out.String(), "closed")
}

// Every row, briefly: each contender's calls do what they should, and the JSON
// has the keys that readers look for. Those of SQL need a server.
func TestRows(t *testing.T) {
	for _, a := range areas {
		t.Run(a.name, func(t *testing.T) {
			brief := plan{
				rounds: 1, slice: 200 * time.Microsecond, turn: 5 * time.Millisecond,
				keys: 2_000, span: 20 * time.Millisecond,
			}
			if a.server {
				brief.database = pgtest.DSN(t)
			}
			// real time: this measures
			results, err := brief.measureArea(t.Context(), a, a.rows)
			require.NoError(t, err)
			want := 0
			for _, r := range a.rows {
				procs := len(r.procs)
				if procs == 0 {
					procs = len(procCounts())
				}
				want += procs * len(r.others()) * (1 + len(r.also))
			}
			require.Len(t, results, want)
			seen := map[string]bool{}
			for _, g := range results {
				name := fmt.Sprint(g.Row, " ", g.Procs, " ", g.Peer)
				require.False(t, seen[name], "%s twice", name) // the table would show one
				seen[name] = true
				require.Positive(t, g.Ours, "%s, %s, %s", a.name, g.Row, g.Peer)
				require.Positive(t, g.Theirs, "%s, %s, %s", a.name, g.Row, g.Peer)
				require.Positive(t, g.Ratio, "%s, %s, %s", a.name, g.Row, g.Peer)
			}
			if results != nil {
				checkOutput(t, results)
			}
		})
	}
}

func checkOutput(t *testing.T, results []result) {
	t.Helper()
	for _, everyPeer := range []bool{false, true} {
		var out bytes.Buffer
		require.NoError(t, printTable(&out, results, everyPeer))
		if everyPeer {
			for _, r := range results {
				require.Contains(t, out.String(), r.Peer)
			}
		}
	}
	text, err := json.Marshal(results)
	require.NoError(t, err)
	var objects []map[string]any
	require.NoError(t, json.Unmarshal(text, &objects))
	for _, o := range objects {
		var keys []string
		for k := range o {
			keys = append(keys, k)
		}
		require.ElementsMatch(t, strings.Fields(
			"area row procs unit ours ours_allocs peer peer_version theirs theirs_allocs floor ratio"), keys)
	}
}

// A row of SQL that fails is named, and the table is dropped all the same.
func TestSQLAnswersAreChecked(t *testing.T) {
	p := plan{rounds: 1, turn: time.Millisecond, database: pgtest.DSN(t)}
	wrong := selectOne
	wrong.want = func(int) int { return 2 }
	l := load{goroutines: 3}
	liar := loadRow("liar", l, row{ours: contender{name: "us", start: native(l, wrong, openOurs)}})
	fine := loadRow("fine", l, row{
		ours:  contender{name: "us", start: native(l, pointRead, openOurs)},
		peers: []contender{{name: "them", start: l.database(pointRead.prepared(), openStdlib)}},
	})
	for range 2 {
		got, err := p.measureArea(t.Context(), area{name: "sql", server: true}, []row{liar, fine})
		require.EqualError(t, err, "sql, liar, 3 goroutines: procs "+fmt.Sprint(runtime.NumCPU())+
			": us: select 1: 1 for id 0, want 2")
		require.Len(t, got, 4)
		require.Equal(t, "fine, 3 goroutines, p99", got[1].Row)
	}
}

func TestSQLNeedsNoServerUnlessRequired(t *testing.T) {
	lacking := fmt.Errorf("sql: %w", pgtest.ErrNotInstalled)
	for required, want := range map[string]bool{"": true, "0": true, "false": true, "1": false} {
		t.Setenv("REQUIRE_POSTGRES", required)
		require.Equal(t, want, mayLack(lacking), required)
		require.False(t, mayLack(io.EOF))
		require.False(t, mayLack(nil))
	}
}

func TestSharesHaveAColumnForEachRow(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printShares(&out, []result{
		{Row: "speed", Peer: "a", Theirs: 7},
		{Row: "kept, 8", Procs: 2, Unit: "of all", oursName: "us", Ours: 1, Peer: "a", Theirs: 0.25, aim: exact},
		{Row: "kept, 8", Procs: 2, Unit: "of all", oursName: "us", Ours: 1, Peer: "b", Theirs: 28.2714, aim: exact},
		{Row: "kept, 64", Procs: 2, Unit: "of all", oursName: "us", Ours: 0.9996, Peer: "b", Theirs: 1, aim: exact},
	}))
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	require.Equal(t, []string{
		"", "kept kept", "8 64", "procs 2 procs 2", "of all of all", "us 1.000 1.000", "a 0.250 -", "b 28.271 1.000",
	}, lines)

	out.Reset()
	require.NoError(t, printShares(&out, []result{{Row: "speed", Peer: "a", Theirs: 7}}))
	require.Empty(t, out.String())
}

func TestQuantiles(t *testing.T) {
	var h histogram
	for x := range 100_000 {
		h.add(uint64(x))
	}
	require.EqualValues(t, 99_999, h.worst)
	for _, q := range []float64{0.0001, 0.01, 0.5, 0.9, 0.9999, 1} {
		require.InDelta(t, q*100_000, h.quantile(q), 1+q*2_000)
	}
	for _, x := range []uint64{0, 1, 63, 64, 127, 128, 1 << 40, math.MaxUint64} {
		var one histogram
		one.add(x)
		require.Equal(t, x, one.quantile(1))
	}
}
