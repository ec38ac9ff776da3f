package main

import (
	"math"
	"slices"
)

// result is one row against one peer.
type result struct {
	Area         string  `json:"area"`
	Row          string  `json:"row"`
	Procs        int     `json:"procs"`
	Unit         string  `json:"unit"`
	Ours         float64 `json:"ours"`
	OursAllocs   float64 `json:"ours_allocs"`
	Peer         string  `json:"peer"`
	PeerVersion  string  `json:"peer_version"`
	Theirs       float64 `json:"theirs"`
	TheirsAllocs float64 `json:"theirs_allocs"`
	Floor        float64 `json:"floor"` // 0: unknown
	Ratio        float64 `json:"ratio"` // below 1: ours is better

	oursName  string
	floorName string
	module    string
	aim       aim
	aside     bool
}

// pairs are the rounds of ours against one peer.
type pairs struct{ ours, theirs []sample }

func (p *pairs) add(ours, theirs sample) {
	p.ours = append(p.ours, ours)
	p.theirs = append(p.theirs, theirs)
}

// also are the same rounds by another of the samples' figures.
func (p *pairs) also(i int) pairs {
	of := func(samples []sample) (other []sample) {
		for _, s := range samples {
			other = append(other, sample{value: s.also[i], allocs: s.allocs})
		}
		return other
	}
	return pairs{of(p.ours), of(p.theirs)}
}

// result is the medians, and the median of the ratios within the pairs.
func (p *pairs) result(a aim) (r result) {
	ratios := make([]float64, len(p.ours))
	for i := range ratios {
		ratios[i] = ratio(p.ours[i].value, p.theirs[i].value, a)
	}
	value := func(s sample) float64 { return s.value }
	allocs := func(s sample) float64 { return s.allocs }
	return result{
		Ours: median(each(p.ours, value)), OursAllocs: hundredths(median(each(p.ours, allocs))),
		Theirs: median(each(p.theirs, value)), TheirsAllocs: hundredths(median(each(p.theirs, allocs))),
		Ratio: median(ratios),
		aim:   a,
	}
}

// results are those of all pairs of a row, for each of its figures.
func (r row) results(area string, procs int, paired []pairs, floor []float64) (results []result) {
	fill := func(i int, got result, name, unit string) result {
		c := r.others()[i]
		got.Area, got.Row, got.Procs, got.Unit = area, name, procs, unit
		got.Peer, got.PeerVersion, got.module = c.name, version(c.module), c.module
		got.oursName, got.aside = r.ours.name, i >= len(r.peers)
		return got
	}
	unit := r.unit
	if unit == "" {
		unit = "ns"
	}
	for i := range paired {
		got := fill(i, paired[i].result(r.aim), r.name, unit)
		got.Floor, got.floorName = median(floor), r.floor.name
		results = append(results, got)
	}
	for j, also := range r.also {
		for i := range paired {
			p := paired[i].also(j)
			results = append(results, fill(i, p.result(also.aim), r.name+", "+also.name, also.unit))
		}
	}
	return results
}

// ratio is below 1 where ours is better.
func ratio(ours, theirs float64, a aim) float64 {
	switch a {
	case more:
		return theirs / ours
	case exact:
		return off(ours) / off(theirs)
	default:
		return ours / theirs
	}
}

// off is how far a share is from 1. Half a percent is near enough: two that are
// as near are equally good.
func off(share float64) float64 { return max(math.Abs(share-1), 0.005) }

// better reports whether x is the better figure.
func (a aim) better(x, y float64) bool { return ratio(x, y, a) < 1 }

// median is the middle value, or the mean of the two; 0 if there is none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

func each(samples []sample, f func(sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = f(s)
	}
	return values
}

// hundredths drops what the harness itself allocates in a slice of many calls.
func hundredths(x float64) float64 { return math.Round(x*100) / 100 }
