// Command bench measures surgewall beside the best Go libraries for the same
// work, in one run on one machine:
//
//	go -C bench run . [-area limit] [-row keyed] [-quick] [-all] [-json]
//
// Ours and each peer run alternately, at least five times; the figures are
// medians, and the ratio is the median of the ratios pair by pair, so what slows
// the machine down for a while slows both. Below 1 means that ours is better.
// What takes seconds (memory, pauses, how well a limit is kept) is measured
// once, one after the other.
// Each call's answer is checked: a row whose calls did not do what they should
// is an error, and the exit code 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
)

// areas are what -area takes, in the order of the table. One without rows has
// none yet.
var areas = []area{
	{"limit", limitRows, false},
	{"circuit", circuitRows, false},
	{"balance", nil, false},
	{"pool", poolRows, false},
	{"http", nil, false},
	{"sql", sqlRows, true},
}

type area struct {
	name   string
	rows   []row
	server bool // they need a Postgres server
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(log)
	only := flags.String("area", "", "measure this area only: "+areaNames())
	part := flags.String("row", "", "measure only the rows whose name contains this")
	hurry := flags.Bool("quick", false, "short rounds, and 100,000 keys for a million: figures to look at, not to quote")
	everyPeer := flags.Bool("all", false, "print a line for each peer, not for the best alone")
	asJSON := flags.Bool("json", false, "print an array of objects, one for each row and peer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	plan := thorough
	if *hurry {
		plan = quick
	}

	var results []result
	var failed []error
	found := false
	for _, a := range chosen {
		if len(a.rows) == 0 {
			fmt.Fprintf(log, "%s: no rows yet\n", a.name)
		}
		rows := slices.DeleteFunc(slices.Clone(a.rows), func(r row) bool { return !strings.Contains(r.name, *part) })
		if len(rows) == 0 {
			continue
		}
		found = true
		got, err := plan.measureArea(ctx, a, rows)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if mayLack(err) {
			fmt.Fprintf(log, "%s: skipped: %v\n", a.name, err)
			continue
		}
		if err != nil {
			failed = append(failed, err)
		}
		results = append(results, got...)
	}
	if *part != "" && !found {
		return fmt.Errorf("no row has %q in its name", *part)
	}
	if *asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if results == nil {
			results = []result{}
		}
		err = enc.Encode(results)
	} else {
		err = printTable(out, results, *everyPeer)
	}
	return errors.Join(append(failed, err)...)
}

// measureArea measures rows of an area, with a server if that needs one. A row
// that fails does not keep the rest from being measured.
func (p plan) measureArea(ctx context.Context, a area, rows []row) (results []result, err error) {
	if a.server {
		var stop func() error
		p, stop, err = p.withDatabase(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.name, err)
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	var failed []error
	for _, r := range rows {
		got, err := p.measure(ctx, a.name, r)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s, %s: %w", a.name, r.name, err))
		}
		results = append(results, got...)
	}
	return results, errors.Join(failed...)
}

func choose(name string) ([]area, error) {
	if name == "" {
		return areas, nil
	}
	for _, a := range areas {
		if a.name == name {
			return []area{a}, nil
		}
	}
	return nil, fmt.Errorf("unknown area %q: there are %s", name, areaNames())
}

func areaNames() string {
	var names []string
	for _, a := range areas {
		names = append(names, a.name)
	}
	return strings.Join(names, ", ")
}
