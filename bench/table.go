package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"text/tabwriter"
)

// printTable prints a line for each row, against the best of its peers, and the
// versions of all of them.
func printTable(out io.Writer, results []result) error {
	if len(results) == 0 {
		_, err := fmt.Fprintln(out, "nothing to show")
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "area\trow\tprocs\tunit\tours\tbest peer\ttheirs\tratio\tallocs ours/theirs\tfloor\t")
	for _, r := range best(results) {
		floor := "unknown"
		if r.floorName != "" {
			floor = figure(r.Floor) + " " + r.floorName
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%.2f\t%s/%s\t%s\t\n",
			r.Area, r.Row, r.Procs, r.Unit, figure(r.Ours), r.Peer, figure(r.Theirs), r.Ratio,
			allocs(r.OursAllocs), allocs(r.TheirsAllocs), floor)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nratio below 1: ours is better. %s, %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	var modules []string
	for _, r := range results {
		if r.module != "" && !slices.Contains(modules, r.module) {
			modules = append(modules, r.module)
			fmt.Fprintf(out, "%s %s\n", r.module, r.PeerVersion)
		}
	}
	return nil
}

// best keeps the best peer of each row.
func best(results []result) (kept []result) {
	for _, r := range results {
		if n := len(kept); n > 0 {
			last := &kept[n-1]
			if last.Area == r.Area && last.Row == r.Row && last.Procs == r.Procs {
				if r.more == (r.Theirs > last.Theirs) {
					*last = r
				}
				continue
			}
		}
		kept = append(kept, r)
	}
	return kept
}

// figure is x to three digits, or all of those before the point.
func figure(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	default:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
}

func allocs(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

// version is that of a module in this binary.
func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			return dep.Version
		}
	}
	return "unknown"
}
