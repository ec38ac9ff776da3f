package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// printTable prints a line for each row, against the best of its peers, or one
// for each of them, and the versions of all.
func printTable(out io.Writer, results []result, everyPeer bool) error {
	if len(results) == 0 {
		_, err := fmt.Fprintln(out, "nothing to show")
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	shown, peer := best(results), "best peer"
	if everyPeer {
		shown, peer = results, "peer"
	}
	fmt.Fprintf(t, "area\trow\tprocs\tunit\tours\t%s\ttheirs\tratio\tallocs ours/theirs\tfloor\t\n", peer)
	for _, r := range shown {
		floor := "unknown"
		if r.floorName != "" {
			floor = figure(r.Floor) + " " + r.floorName
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%.2f\t%s/%s\t%s\t\n",
			r.Area, r.Row, r.Procs, r.Unit, r.figure(r.Ours), r.Peer, r.figure(r.Theirs), r.Ratio,
			allocs(r.OursAllocs), allocs(r.TheirsAllocs), floor)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if err := printShares(out, results); err != nil {
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

// printShares prints a table of all whose figure is a share of what should be,
// with a column for each row: it may have one peer that is exact, and others
// that are far off.
func printShares(out io.Writer, results []result) error {
	var heads [][]string // of the columns, the parts of the row's name
	var names []string
	shares := map[string][]string{} // by name, those of all columns
	put := func(name, share string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		missing := slices.Repeat([]string{"-"}, len(heads)-1-len(shares[name]))
		shares[name] = append(append(shares[name], missing...), share)
	}
	var last result
	for _, r := range results {
		if r.aim != exact {
			continue
		}
		if r.Row != last.Row || r.Procs != last.Procs {
			heads = append(heads, append(strings.Split(r.Row, ", "), fmt.Sprint("procs ", r.Procs), r.Unit))
			put(r.oursName, r.figure(r.Ours))
			last = r
		}
		put(r.Peer, r.figure(r.Theirs))
	}
	if len(heads) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for line := range len(heads[0]) {
		fmt.Fprint(t, "\n")
		for _, head := range heads {
			fmt.Fprint(t, "\t", slices.Concat(head, make([]string, len(heads[0])))[line])
		}
		fmt.Fprint(t, "\t")
	}
	for _, name := range names {
		missing := slices.Repeat([]string{"-"}, len(heads)-len(shares[name]))
		fmt.Fprintf(t, "\n%s\t%s\t", name, strings.Join(append(shares[name], missing...), "\t"))
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// best keeps the best peer of each row. What is aside is not among them, unless
// there is no other.
func best(results []result) (kept []result) {
	for _, r := range results {
		if n := len(kept); n > 0 {
			last := &kept[n-1]
			if last.Area == r.Area && last.Row == r.Row && last.Procs == r.Procs {
				if !r.aside && (last.aside || r.aim.better(r.Theirs, last.Theirs)) {
					*last = r
				}
				continue
			}
		}
		kept = append(kept, r)
	}
	return kept
}

// figure is x to three digits, or all of those before the point; a share has
// three behind it.
func (r result) figure(x float64) string {
	if r.aim == exact {
		return strconv.FormatFloat(x, 'f', 3, 64)
	}
	return figure(x)
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

// version is that of a module in this binary, "this" without one.
func version(module string) string {
	if module == "" {
		return "this"
	}
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
