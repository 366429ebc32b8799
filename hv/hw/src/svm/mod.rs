//! AMD's Secure Virtual Machine (AMD APM volume 2, chapter 15).
