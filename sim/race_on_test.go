//go:build race

package sim

// ordinary is how many seeds the ordinary tests play: with the race detector each takes ten times as long.
const ordinary = 10
