// Package twofold lets two generations of one Protocol Buffers schema live in one binary.
//
// Docker's command line takes a few constants from swarmkit, and swarmkit brings an old copy of raft's messages along;
// the replicated store uses the present ones. Both register the same names with the Protocol Buffers library, which ends
// the process for that unless it is told otherwise. Neither is ever looked up by its name here, so the second
// registration can be ignored. The library takes that choice from the environment, at the moment of the conflict.
//
// Importing this package makes the choice in time. Go initializes packages in the order of their import paths as soon as
// what they import is ready; this one needs only "os", which the library needs too, and sorts before it. Call [Forget]
// first thing in main, so that no other process inherits the choice.
package twofold

import "os"

const variable = "GOLANG_PROTOBUF_REGISTRATION_CONFLICT"

var chosen = choose()

func choose() bool {
	return os.Getenv(variable) == "" && os.Setenv(variable, "ignore") == nil
}

// Forget takes the choice out of the environment again. All packages have been initialized by then.
func Forget() error {
	if !chosen {
		return nil
	}
	return os.Unsetenv(variable)
}
