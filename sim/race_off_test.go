//go:build !race

package sim

// ordinary is how many seeds the ordinary tests play.
const ordinary = 200
