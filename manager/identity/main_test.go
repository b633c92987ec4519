package identity

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails if anything here leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
