//go:build !race

package otelhook

const raceEnabled = false
