//go:build race

package sqlpool

const raceEnabled = true
