"""Published weights of the Step-Audio family, read into the organs that are trained here."""
