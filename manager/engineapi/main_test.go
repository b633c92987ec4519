package engineapi

import (
	"testing"

	"go.uber.org/goleak"
)

// Streams, forwarded requests and watches must end with those who asked for them.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
