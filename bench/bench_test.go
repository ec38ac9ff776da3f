package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
	require.Equal(t, 0.5, ratio(50, 100, false), "half the time")
	require.Equal(t, 2.0, ratio(100, 50, false))
	require.Equal(t, 0.5, ratio(100, 50, true), "twice the queries")
	require.Equal(t, 2.0, ratio(50, 100, true))
}

// Three rounds, of which one was disturbed for both: the ratio of the medians
// would be 100/400, that of the pairs is 1/2.
func TestRatioIsOfPairs(t *testing.T) {
	var p pairs
	p.add(sample{100, 0}, sample{200, 1})
	p.add(sample{1000, 0}, sample{400, 2})
	p.add(sample{50, 0.001}, sample{500, 2})
	r := p.result(false)
	require.Equal(t, 100.0, r.Ours)
	require.Equal(t, 400.0, r.Theirs)
	require.Equal(t, 0.5, r.Ratio)
	require.Zero(t, r.OursAllocs)
	require.Equal(t, 2.0, r.TheirsAllocs)
	require.Equal(t, 2.0, p.result(true).Ratio)
}

func TestBestPeer(t *testing.T) {
	rows := func(more bool) []result {
		return []result{
			{Row: "a", Peer: "x", Theirs: 3, more: more},
			{Row: "a", Peer: "y", Theirs: 1, more: more},
			{Row: "a", Peer: "z", Theirs: 2, more: more},
			{Row: "a", Procs: 2, Peer: "x", Theirs: 7, more: more},
			{Row: "b", Peer: "x", Theirs: 5, more: more},
		}
	}
	peers := func(results []result) (names string) {
		for _, r := range best(results) {
			names += r.Peer
		}
		return names
	}
	require.Equal(t, "yxx", peers(rows(false)))
	require.Equal(t, "xxx", peers(rows(true)))
}

// fake is a contender whose calls take a fixed time, and do what they should if
// honest.
func fake(name string, took time.Duration, honest bool, log *[]string) contender {
	return contender{name: name, start: func(context.Context, int) (measure, func(), error) {
		loop := func(n int) int {
			if honest {
				return n
			}
			return n - 1
		}
		return func(d time.Duration) (sample, error) {
			*log = append(*log, name)
			_, _, err := timed(1, loop, 10)
			return sample{value: float64(took)}, err
		}, func() { *log = append(*log, "stop "+name) }, nil
	}}
}

func TestRunsAlternate(t *testing.T) {
	var log []string
	r := row{
		name:  "r",
		ours:  fake("us", 10, true, &log),
		peers: []contender{fake("a", 20, true, &log), fake("b", 5, true, &log)},
		floor: fake("floor", 1, true, &log),
	}
	got, err := plan{rounds: 2}.measure(t.Context(), "limit", r, 1)
	require.NoError(t, err)
	require.Equal(t, strings.Fields("us a b floor  us a us b floor  a us b us floor"), log[:14])
	require.ElementsMatch(t, []string{"stop us", "stop a", "stop b", "stop floor"}, log[14:])
	require.Len(t, got, 2)
	require.Equal(t, 0.5, got[0].Ratio)
	require.Equal(t, 2.0, got[1].Ratio)
	require.Equal(t, 1.0, got[1].Floor)
	require.Equal(t, "ns", got[0].Unit)
}

func TestWrongAnswersFail(t *testing.T) {
	var log []string
	r := row{ours: fake("us", 1, true, &log), peers: []contender{fake("liar", 1, false, &log)}}
	_, err := plan{rounds: 1}.measure(t.Context(), "limit", r, 1)
	require.EqualError(t, err, "liar: only 9 of 10 calls did what they should")
	require.Contains(t, log, "stop us")
	require.Contains(t, log, "stop liar")
}

func TestBadArguments(t *testing.T) {
	for want, args := range map[string][]string{
		`unknown area "disk": there are limit, circuit, balance, pool, http, sql`: {"-area", "disk"},
		`unexpected argument "limit"`: {"limit"},
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

// Every row, briefly: each contender's calls do what they should, and the JSON
// has the keys that readers look for.
func TestRows(t *testing.T) {
	for _, a := range areas {
		var results []result
		for _, r := range a.rows {
			for _, procs := range procCounts() {
				// real time: this measures
				got, err := plan{rounds: 1, slice: 200 * time.Microsecond}.measure(t.Context(), a.name, r, procs)
				require.NoError(t, err, "%s, %s", a.name, r.name)
				require.Len(t, got, len(r.peers))
				for _, g := range got {
					require.Positive(t, g.Ours)
					require.Positive(t, g.Theirs)
					require.Positive(t, g.Ratio)
				}
				results = append(results, got...)
			}
		}
		if results == nil {
			continue
		}
		var out bytes.Buffer
		require.NoError(t, printTable(&out, results))
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
}
