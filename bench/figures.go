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

	floorName string
	module    string
	more      bool
}

// pairs are the rounds of ours against one peer.
type pairs struct{ ours, theirs []sample }

func (p *pairs) add(ours, theirs sample) {
	p.ours = append(p.ours, ours)
	p.theirs = append(p.theirs, theirs)
}

// result is the medians, and the median of the ratios within the pairs. more
// says that more is better.
func (p *pairs) result(more bool) (r result) {
	ratios := make([]float64, len(p.ours))
	for i := range ratios {
		ratios[i] = ratio(p.ours[i].value, p.theirs[i].value, more)
	}
	value := func(s sample) float64 { return s.value }
	allocs := func(s sample) float64 { return s.allocs }
	return result{
		Ours: median(each(p.ours, value)), OursAllocs: hundredths(median(each(p.ours, allocs))),
		Theirs: median(each(p.theirs, value)), TheirsAllocs: hundredths(median(each(p.theirs, allocs))),
		Ratio: median(ratios),
	}
}

// ratio is below 1 where ours is better.
func ratio(ours, theirs float64, more bool) float64 {
	if more {
		return theirs / ours
	}
	return ours / theirs
}

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
