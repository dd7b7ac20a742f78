// Package faulttest has what the tests of failures share: a program that
// captures in a process of its own and can be killed, a load with a control that
// says what history must hold, and a log to look into. Only tests import it.
package faulttest
