package lab

// ID gives the tests the name under which a lab's control groups go.
func ID(l *Lab) string { return labID(l.dir) }
