//go:build race

package otelhook

const raceEnabled = true
